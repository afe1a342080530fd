// SPDX-License-Identifier: Apache-2.0
// Whole small files: read with a bound, replaced atomically.
#pragma once

#include <cstddef>
#include <optional>
#include <string>
#include <vector>

#include "util/result.h"

namespace egressclass {

/// The file's content; no value when there is no such file. More than `max_bytes` is an error.
Result<std::optional<std::string>> read_file(const std::string& path, std::size_t max_bytes);

/// Everything up to end of file from an open descriptor; more than `max_bytes` is an error.
Result<std::string> read_all(int fd, const std::string& name, std::size_t max_bytes);

/// Replaces `path` as a whole: temporary file beside it, fsync, rename, fsync of the folder.
/// Missing folders are made (0755). A reader sees the old content or the new, never a part.
Status write_file_atomic(const std::string& path, const std::string& content, unsigned mode = 0644);

/// The names in a folder, in their order; none when there is no such folder, or it cannot be read. Throws nothing,
/// unlike a loop over std::filesystem::directory_iterator.
std::vector<std::string> names_in(const std::string& folder);

}  // namespace egressclass
