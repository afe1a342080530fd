// SPDX-License-Identifier: Apache-2.0
#include "core/config_agent.h"

#include "core/config_values.h"

namespace egressclass {
namespace {

constexpr std::uint32_t kMaxFileMegabytes = 1024;
constexpr std::uint32_t kMaxMegabytes = 1U << 20U;
constexpr std::uint32_t kMaxDays = 3660;

void read_number(const Field& object, const char* key, std::uint32_t highest, std::uint32_t* value) {
  if (const auto field = object.member(key)) *value = field->number(1, highest).value_or(*value);
}

void read_only(const Field& field, AuditConfig* audit) {
  if (!field.is_object_of({"classes", "pods", "destinations"})) return;
  if (const auto key = field.member("classes")) audit->classes = read_patterns(*key);
  if (const auto key = field.member("pods")) audit->pods = read_select(*key);
  if (const auto key = field.member("destinations"))
    audit->destinations = read_prefixes(*key, LoneAddress::kAccepted, false);
}

}  // namespace

std::optional<AuditConfig> read_audit(const Field& field) {
  AuditConfig audit;
  if (!field.is_object()) {
    if (field.boolean().value_or(false)) return audit;
    return std::nullopt;
  }
  if (!field.is_object_of({"folder", "fileMegabytes", "maxMegabytes", "maxDays", "stdout", "syslog", "only"}))
    return audit;
  if (const auto folder = field.member("folder")) {
    audit.folder = folder->text().value_or(audit.folder);
    if (!audit.folder.starts_with('/') || audit.folder.find('\0') != std::string::npos)
      folder->refuse("must be an absolute path");
  }
  read_number(field, "fileMegabytes", kMaxFileMegabytes, &audit.file_megabytes);
  read_number(field, "maxMegabytes", kMaxMegabytes, &audit.max_megabytes);
  read_number(field, "maxDays", kMaxDays, &audit.max_days);
  if (audit.max_megabytes < audit.file_megabytes)
    field.refuse("\"maxMegabytes\" " + std::to_string(audit.max_megabytes) +
                 " has no room for one file of \"fileMegabytes\" " + std::to_string(audit.file_megabytes));
  if (const auto key = field.member("stdout")) audit.to_stdout = key->boolean().value_or(false);
  if (const auto key = field.member("syslog")) audit.to_syslog = key->boolean().value_or(false);
  if (const auto only = field.member("only")) read_only(*only, &audit);
  return audit;
}

}  // namespace egressclass
