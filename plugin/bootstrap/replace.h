// SPDX-License-Identifier: Apache-2.0
// Files in folders that runtimes watch and that others write too: replaced whole, durably, and only as long as they
// are what was read.
#pragma once

#include <optional>
#include <string>

#include "util/fd.h"
#include "util/result.h"

namespace egressclass {

/// What temporary files begin with. No runtime loads them, and sweep() knows them.
inline constexpr const char* kTemporaryPrefix = ".egressclass-";

/// One at a time in a folder: the lock is on the folder itself, so that it leaves no trace, and ends with the process.
Result<Fd> lock_folder(const std::string& folder);

enum class Written { kDone, kChangedMeanwhile };

/// Makes the file's content `after` (no value: no file) if it is `before` (no value: none) now. Mode, owner and
/// extended attributes stay; a link is followed, a missing folder made. A reader sees the old content or the new, and
/// so does who comes after a power loss.
Result<Written> replace_content(const std::string& path, const std::optional<std::string>& before,
                                const std::optional<std::string>& after);

/// Makes `target` an executable with the content of `source`. False: it is that already. A running one goes on running.
Result<bool> install_executable(const std::string& source, const std::string& target);

/// Removes what a crash left of replace_content() in the folder, and in those below it, where drop-ins are. Nobody else
/// may be at work there.
void sweep(const std::string& folder);

/// Makes who watches the folder look at it again: a change behind a link or in a folder below is not seen.
void poke(const std::string& folder);

}  // namespace egressclass
