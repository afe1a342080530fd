// SPDX-License-Identifier: Apache-2.0
#include "audit/files.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <zlib.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <filesystem>
#include <memory>
#include <system_error>

#include "audit/index.h"
#include "util/clock.h"
#include "util/file.h"

namespace egressclass::audit {
namespace {

namespace fs = std::filesystem;

constexpr const char* kCurrent = "audit.jsonl";
constexpr std::string_view kPrefix = "audit-";
constexpr std::string_view kPlain = ".jsonl";
constexpr std::string_view kCompressed = ".jsonl.gz";
constexpr std::string_view kIndex = ".jsonl.idx";
constexpr unsigned kFileMode = 0640;
constexpr unsigned kFolderMode = 0750;
constexpr std::size_t kMemberBytes = 256UL << 10U;
constexpr std::size_t kMaxPlainBytes = 2048UL << 20U;
constexpr std::int64_t kMaxOpenNs = std::int64_t{24} * 3600 * kNsPerSecond;  // a file has a day's records at most
constexpr int kGzip = 15 + 16;  // window bits, and a gzip header (zlib.h: deflateInit2)

std::string full_name(std::int64_t time_ns) {
  return std::string(kPrefix) + format_time(time_ns) + std::string(kPlain);
}

/// Names of files that end so, the oldest first.
Result<std::vector<std::string>> names_with(const std::string& folder, std::string_view suffix) {
  std::error_code ec;
  std::vector<std::string> names;
  for (fs::directory_iterator it(folder, ec), end; !ec && it != end; it.increment(ec))
    if (const std::string name = it->path().filename(); name.starts_with(kPrefix) && name.ends_with(suffix))
      names.push_back(name);
  if (ec && ec != std::errc::no_such_file_or_directory) return system_error("cannot list", folder, ec.value());
  std::ranges::sort(names);
  return names;
}

std::string in_folder(const std::string& folder, std::string_view name) {
  std::string path = folder;
  return path.append("/").append(name);
}

/// The path of the file with the same TIME and another suffix.
std::string sibling(const std::string& folder, const std::string& name, std::string_view suffix,
                    std::string_view other) {
  std::string path = in_folder(folder, std::string_view(name).substr(0, name.size() - suffix.size()));
  return path.append(other);
}

/// Compresses lines into members, and notes for each the member in which it is.
class Compressor {
 public:
  Status add(std::string_view text) {
    while (!text.empty()) {
      std::size_t length = std::min(kMemberBytes, text.size());
      if (length < text.size()) {  // a whole number of lines, but at least one
        auto feed = text.rfind('\n', length);
        if (feed == std::string_view::npos) feed = text.find('\n', length);
        length = feed == std::string_view::npos ? text.size() : feed + 1;
      }
      const std::string_view member = text.substr(0, length);
      note_entries(member);
      if (auto done = deflate_member(member); !done) return done;
      text.remove_prefix(length);
    }
    return Ok{};
  }

  const std::string& compressed() const { return compressed_; }

  std::string index() {
    std::ranges::sort(entries_);
    std::string bytes(entries_.size() * sizeof(Entry), '\0');
    std::copy_n(reinterpret_cast<const char*>(entries_.data()), bytes.size(), bytes.data());  // NOLINT
    return bytes;
  }

 private:
  void note_entries(std::string_view lines) {
    while (!lines.empty()) {
      const auto feed = lines.find('\n');
      const std::string_view line = lines.substr(0, feed);
      if (auto entry = entry_of(line)) {
        entry->offset = static_cast<std::uint32_t>(compressed_.size());
        entries_.push_back(*entry);
      }
      lines.remove_prefix(feed == std::string_view::npos ? lines.size() : feed + 1);
    }
  }

  Status deflate_member(std::string_view text) {
    z_stream stream{};
    if (deflateInit2(&stream, Z_BEST_SPEED, Z_DEFLATED, kGzip, MAX_MEM_LEVEL, Z_DEFAULT_STRATEGY) != Z_OK)
      return make_error("cannot compress records", "zlib has no memory");
    const std::size_t before = compressed_.size();
    const auto room = deflateBound(&stream, text.size());
    compressed_.resize(before + room);
    std::string input(text);
    stream.next_in = reinterpret_cast<Bytef*>(input.data());                  // NOLINT
    stream.next_out = reinterpret_cast<Bytef*>(compressed_.data() + before);  // NOLINT
    stream.avail_in = static_cast<uInt>(input.size());
    stream.avail_out = static_cast<uInt>(room);
    const int result = deflate(&stream, Z_FINISH);
    compressed_.resize(before + stream.total_out);
    deflateEnd(&stream);
    return result == Z_STREAM_END ? Status(Ok{})
                                  : make_error("cannot compress records", "zlib: " + std::to_string(result));
  }

  std::string compressed_;
  std::vector<Entry> entries_;
};

/// The index before what it is of, and that before the plain file goes: whoever finds a compressed file finds all.
Status compress(const std::string& folder, const std::string& name) {
  const std::string path = in_folder(folder, name);
  auto text = read_file(path, kMaxPlainBytes);
  if (!text) return text.error();
  if (!*text) return Ok{};
  Compressor compressor;
  if (auto done = compressor.add(**text); !done) return done;
  if (auto done = write_file_atomic(sibling(folder, name, kPlain, kIndex), compressor.index(), kFileMode); !done)
    return done;
  if (auto done = write_file_atomic(sibling(folder, name, kPlain, kCompressed), compressor.compressed(), kFileMode);
      !done)
    return done;
  std::error_code ec;
  fs::remove(path, ec);
  return Ok{};
}

std::uint64_t size_of(const std::string& path) {
  std::error_code ec;
  const auto size = fs::file_size(path, ec);
  return ec ? 0 : size;
}

Status delete_beyond(const std::string& folder, const Bounds& bounds) {
  auto names = names_with(folder, kCompressed);
  if (!names) return names.error();
  const auto paths_of = [&](const std::string& name) {
    return std::array{in_folder(folder, name), sibling(folder, name, kCompressed, kIndex)};
  };
  std::uint64_t total = size_of(in_folder(folder, kCurrent));
  for (const std::string& name : *names)
    for (const std::string& path : paths_of(name)) total += size_of(path);
  const std::string oldest = bounds.max_age_ns == 0 ? "" : full_name(now_ns() - bounds.max_age_ns);
  for (const std::string& name : *names) {
    if (total <= bounds.total_bytes && name >= oldest) break;
    for (const std::string& path : paths_of(name)) {
      total -= std::min(total, size_of(path));
      std::error_code ec;
      fs::remove(path, ec);
      if (ec) return system_error("cannot delete old records", path, ec.value());
    }
  }
  return Ok{};
}

/// When the file's first line was written; now, if that cannot be read.
std::int64_t time_of_first_line(const std::string& path) {
  const Fd fd(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
  std::array<char, 64> head{};
  const ssize_t got = fd ? ::read(fd.get(), head.data(), head.size()) : 0;
  constexpr std::string_view kKey = R"({"time":")";
  const std::string_view text(head.data(), got > 0 ? static_cast<std::size_t>(got) : 0);
  const auto end = text.find('"', kKey.size());
  if (!text.starts_with(kKey) || end == std::string_view::npos) return now_ns();
  return parse_time(text.substr(kKey.size(), end - kKey.size()), 0).value_or(now_ns());
}

}  // namespace

Status CurrentFile::open() {
  std::error_code ec;
  if (fs::create_directories(folder_, ec)) fs::permissions(folder_, static_cast<fs::perms>(kFolderMode), ec);
  const std::string path = folder_ + "/" + kCurrent;
  Fd fd(::open(path.c_str(), O_RDWR | O_CREAT | O_APPEND | O_CLOEXEC | O_NOFOLLOW, kFileMode));
  struct stat status {};
  if (!fd || ::fstat(fd.get(), &status) != 0) return system_error("cannot open the audit file", path, errno);
  ::fchmod(fd.get(), kFileMode);
  size_ = static_cast<std::uint64_t>(status.st_size);
  opened_ns_ = size_ == 0 ? now_ns() : time_of_first_line(path);
  char last = '\n';
  if (size_ != 0 && ::pread(fd.get(), &last, 1, status.st_size - 1) == 1 && last != '\n' &&
      ::write(fd.get(), "\n", 1) == 1)  // what a crash cut off stays a line of its own
    ++size_;
  fd_ = std::move(fd);
  return Ok{};
}

Status CurrentFile::rotate() {
  std::int64_t time = now_ns();
  const auto path = [&] { return folder_ + "/" + full_name(time); };
  while (fs::exists(path())) time += 1000;
  if (::rename((folder_ + "/" + kCurrent).c_str(), path().c_str()) != 0 && errno != ENOENT)
    return system_error("cannot rename the audit file", path(), errno);
  fd_.reset();
  return open();
}

Status CurrentFile::append(std::string_view lines, std::size_t* written) {
  *written = 0;
  if (!fd_)
    if (auto opened = open(); !opened) return opened;
  if (size_ != 0 && (size_ >= bounds_.file_bytes || now_ns() - opened_ns_ >= kMaxOpenNs))
    if (auto rotated = rotate(); !rotated) return rotated;
  int err = 0;
  while (*written < lines.size() && err == 0) {
    const ssize_t put = ::write(fd_.get(), lines.data() + *written, lines.size() - *written);
    if (put > 0)
      *written += static_cast<std::size_t>(put);
    else if (put == 0 || errno != EINTR)
      err = put == 0 ? EIO : errno;
  }
  if (err != 0) {
    const auto feed = lines.substr(0, *written).rfind('\n');
    *written = feed == std::string_view::npos ? 0 : feed + 1;
    if (::ftruncate(fd_.get(), static_cast<off_t>(size_ + *written)) != 0) fd_.reset();
  }
  size_ += *written;
  if (err != 0) return system_error("cannot write the audit file", folder_ + "/" + kCurrent, err);
  return Ok{};
}

void CurrentFile::sync() const {
  if (fd_) ::fdatasync(fd_.get());
}

Status compress_full(const std::string& folder, const Bounds& bounds) {
  auto names = names_with(folder, kPlain);
  if (!names) return names.error();
  Status result = Ok{};
  for (const std::string& name : *names)
    if (auto done = compress(folder, name); !done) result = done;
  if (auto done = delete_beyond(folder, bounds); !done) return done;
  return result;
}

Result<std::vector<RecordFile>> list_record_files(const std::string& folder) {
  auto compressed = names_with(folder, kCompressed);
  auto plain = names_with(folder, kPlain);
  if (!compressed) return compressed.error();
  if (!plain) return plain.error();
  std::vector<RecordFile> files;
  for (const std::string& name : *compressed)
    files.push_back({in_folder(folder, name), sibling(folder, name, kCompressed, kIndex)});
  for (const std::string& name : *plain)
    if (!std::ranges::binary_search(*compressed, name + ".gz")) files.push_back({in_folder(folder, name), ""});
  std::ranges::sort(files, {}, &RecordFile::path);
  if (const std::string current = in_folder(folder, kCurrent); fs::exists(current)) files.push_back({current, ""});
  return files;
}

Result<std::string> read_member(const std::string& path, std::uint64_t offset) {
  const Fd fd(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
  if (!fd) return system_error("cannot open", path, errno);
  z_stream stream{};
  if (inflateInit2(&stream, kGzip) != Z_OK) return make_error("cannot decompress", path + ": zlib has no memory");
  const std::unique_ptr<z_stream, decltype([](z_stream* s) { inflateEnd(s); })> end(&stream);
  std::string text;
  std::array<char, 65536> input{};
  std::array<char, 65536> output{};
  for (int result = Z_OK; result != Z_STREAM_END;) {
    if (stream.avail_in == 0) {
      const ssize_t got = ::pread(fd.get(), input.data(), input.size(), static_cast<off_t>(offset));
      if (got <= 0) return system_error("cannot read", path, got < 0 ? errno : EPIPE, "the file is cut off");
      offset += static_cast<std::uint64_t>(got);
      stream.next_in = reinterpret_cast<Bytef*>(input.data());  // NOLINT
      stream.avail_in = static_cast<uInt>(got);
    }
    stream.next_out = reinterpret_cast<Bytef*>(output.data());  // NOLINT
    stream.avail_out = output.size();
    result = inflate(&stream, Z_NO_FLUSH);
    if (result != Z_OK && result != Z_STREAM_END)
      return make_error("cannot decompress", path + ": zlib: " + std::to_string(result));
    text.append(output.data(), output.size() - stream.avail_out);
  }
  return text;
}

}  // namespace egressclass::audit
