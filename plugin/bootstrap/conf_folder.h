// SPDX-License-Identifier: Apache-2.0
// The folder from which a runtime loads its networks, seen with the runtime's eyes: which file is the one that pods
// get, and what of ours is there.
#pragma once

#include <cstddef>
#include <string>
#include <vector>

#include "bootstrap/conflist.h"
#include "util/result.h"

namespace egressclass {

inline constexpr std::size_t kMaxNetworkBytes = 4UL << 20U;

/// containerd (go-cni) loads the first file by name, and nothing at all while that is broken. CRI-O (ocicni) passes
/// broken files by.
enum class Runtime { kContainerd, kCrio };

struct NetworkFile {
  std::string path;
  std::string text;
  Network network;
};

/// A file of ours alone.
struct OwnFile {
  std::string path;
  std::string text;
};

struct Survey {
  std::string folder;
  std::vector<NetworkFile> files;   // others', usable, by name; the runtime takes the first, if it can
  std::vector<std::string> broken;  // others', "FILE: reason"
  bool blocked = false;             // the runtime loads nothing, because of broken[0]
  std::vector<OwnFile> own_lists;   // BASE-egressclass.conflist, in front of the file BASE.*
  std::vector<OwnFile> drop_ins;    // NETWORK/50-egressclass.conf

  const NetworkFile* effective() const { return blocked || files.empty() ? nullptr : &files.front(); }
};

/// An error when the folder is there but cannot be read; a folder that is missing is an empty one.
Result<Survey> survey_folder(const std::string& folder, Runtime runtime);

/// A drop-in of somebody else that libcni puts behind our entry, and that may give the pod another MAC than we have
/// seen. Empty: there is none. `ours_is_drop_in`: else our entry is in the list, and all drop-ins are behind it.
std::string late_tuning(const Survey& survey, const Network& network, bool ours_is_drop_in);

/// The list of ours that the runtime takes instead of `file`: '-' sorts before '.'.
std::string own_list_path(const std::string& file);
std::string drop_in_path(const std::string& folder, const std::string& network);

}  // namespace egressclass
