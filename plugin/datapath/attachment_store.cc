// SPDX-License-Identifier: Apache-2.0
#include "datapath/attachment_store.h"

#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <set>

#include "cni/codes.h"
#include "datapath/paths.h"
#include "util/file.h"
#include "util/spare_file.h"

namespace egressclass {
namespace {

constexpr std::size_t kMaxRecordBytes = 64U << 10U;

std::string record_path(const std::string& key) { return std::string(paths::kAttachments) + "/" + key; }

constexpr std::size_t kTemporarySuffix = 7;  // ".XXXXXX" of write_file_atomic()

/// The key of a file in the folder: of a record, or of the temporary file that was to become one.
std::string key_of(const std::string& file) {
  if (!file.starts_with('.') || file.size() <= 1 + kTemporarySuffix) return file;
  return file.substr(1, file.size() - 1 - kTemporarySuffix);
}

void remove_temporaries(const std::string& key) {
  for (const std::string& file : names_in(paths::kAttachments))
    if (file.starts_with('.') && key_of(file) == key) ::unlink(record_path(file).c_str());
}

Error as_state_error(Error error) {
  error.code = codes::kStateFailed;
  return error;
}

}  // namespace

Status save_attachment(const Attachment& attachment) {
  remove_temporaries(attachment.key);
  auto saved = write_file_atomic(record_path(attachment.key), attachment.to_json(), 0600);
  if (!saved) return as_state_error(saved.error());
  return Ok{};
}

namespace {

/// One for all, and not in the folder of records, where all that is there counts.
constexpr const char* kAnyRecord = "/run/egressclass/record";

}  // namespace

Status reserve_record() {
  constexpr std::size_t kUsualBytes = 4096;
  return reserve_file(kAnyRecord, kUsualBytes);
}

Status replace_attachment(const Attachment& attachment) {
  auto saved = write_by_spare(spare_of(kAnyRecord), record_path(attachment.key), attachment.to_json(), 0600);
  if (!saved) return as_state_error(saved.error());
  return Ok{};
}

Result<std::optional<Attachment>> load_attachment(const std::string& key) {
  auto text = read_file(record_path(key), kMaxRecordBytes);
  if (!text) return as_state_error(text.error());
  if (!*text) return std::optional<Attachment>();
  auto attachment = Attachment::from_json(key, **text);
  if (!attachment) return attachment.error();
  return std::optional<Attachment>(std::move(*attachment));
}

Status remove_attachment(const std::string& key) {
  remove_temporaries(key);
  const std::string path = record_path(key);
  if (::unlink(path.c_str()) != 0 && errno != ENOENT && errno != ENOTDIR && errno != ENAMETOOLONG)
    return as_state_error(system_error("cannot remove the attachment's record", path, errno));
  return Ok{};
}

std::vector<std::string> list_attachment_keys() {
  std::set<std::string> keys;
  for (const std::string& file : names_in(paths::kAttachments)) keys.insert(key_of(file));
  return {keys.begin(), keys.end()};
}

std::vector<Attachment> list_attachments(std::vector<std::string>* unreadable) {
  std::vector<Attachment> found;
  for (const std::string& key : names_in(paths::kAttachments)) {
    if (key.starts_with('.')) continue;  // being written
    auto attachment = load_attachment(key);
    if (!attachment && unreadable != nullptr) unreadable->push_back(key + ": " + attachment.error().details);
    if (attachment && *attachment) found.push_back(std::move(**attachment));
  }
  std::ranges::sort(found, {}, &Attachment::key);
  return found;
}

}  // namespace egressclass
