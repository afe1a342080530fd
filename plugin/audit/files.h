// SPDX-License-Identifier: Apache-2.0
// The files of an audit folder:
//
//   audit.jsonl                       being written
//   audit-TIME.jsonl                  full, about to be compressed
//   audit-TIME.jsonl.gz, .jsonl.idx   compressed in members of some 256 KiB each (gzip reads them as one), and its
//                                     index (index.h). TIME is when the file was full
//
// All have the mode 0640. A file is there whole or not at all, except for a last line that a crash cut off.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "util/fd.h"
#include "util/result.h"

namespace egressclass::audit {

struct Bounds {
  std::uint64_t file_bytes = 64ULL << 20U;
  std::uint64_t total_bytes = 4096ULL << 20U;
  std::int64_t max_age_ns = 0;  ///< 0: no bound
};

/// Writes the current file; full ones are renamed and left to compress_full().
class CurrentFile {
 public:
  CurrentFile(std::string folder, Bounds bounds) : folder_(std::move(folder)), bounds_(bounds) {}

  /// Appends whole lines; `written` receives how many bytes of them are in the file, also on an error (a disk that is
  /// full). Nothing but whole lines is left there.
  Status append(std::string_view lines, std::size_t* written);
  /// Survives a loss of power from then on.
  void sync() const;

 private:
  Status open();
  Status rotate();

  std::string folder_;
  Bounds bounds_;
  Fd fd_;
  std::uint64_t size_ = 0;
  std::int64_t opened_ns_ = 0;  ///< when the first of its lines was written
};

/// Compresses and indexes what is full, also of a program that was killed, and deletes the oldest files beyond the
/// bounds. Run by one thread at a time.
Status compress_full(const std::string& folder, const Bounds& bounds);

/// One file of records, the oldest first; the current one last.
struct RecordFile {
  std::string path;
  std::string index;  ///< empty: `path` is plain text without one
};
Result<std::vector<RecordFile>> list_record_files(const std::string& folder);

/// The text of the member that begins at `offset`.
Result<std::string> read_member(const std::string& path, std::uint64_t offset);

}  // namespace egressclass::audit
