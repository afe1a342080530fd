// SPDX-License-Identifier: Apache-2.0
// Files that are written when it is too late to fail. Beside each is a spare one with room for the next content, so
// that a full file system is noticed by who reserves that room, before anything is done, and never by who writes.
#pragma once

#include <cstddef>
#include <string>

#include "util/result.h"

namespace egressclass {

/// Room for two contents of `path` of at most `bytes`: the next one, and then again one like the present, in its place.
Status reserve_file(const std::string& path, std::size_t bytes);

/// As write_file_atomic(), in the room that was reserved. What was in `path` becomes the spare.
Status write_reserved(const std::string& path, const std::string& content, unsigned mode = 0644);

/// Also when there is another file in its place: `spare` and `path` are of one file system.
Status write_by_spare(const std::string& spare, const std::string& path, const std::string& content, unsigned mode);

/// Of a `path`.
std::string spare_of(const std::string& path);

}  // namespace egressclass
