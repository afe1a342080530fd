// SPDX-License-Identifier: Apache-2.0
// The records of this node's attachments: one file each, gone with a reboot like the kernel's state.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "core/attachment.h"
#include "util/result.h"

namespace egressclass {

Status save_attachment(const Attachment& attachment);
/// Of one that there is, for who has the node's lock alone: in room that reserve_record() took before.
Status replace_attachment(const Attachment& attachment);
Status reserve_record();
/// No value: there is no such record.
Result<std::optional<Attachment>> load_attachment(const std::string& key);
/// The keys of all records, readable or not, and of those that were being written when their writer was killed.
std::vector<std::string> list_attachment_keys();
/// With whatever a killed writer left of it. Absent already is success.
Status remove_attachment(const std::string& key);
/// All that can be read; `unreadable`, where given, gets a line for each that cannot.
std::vector<Attachment> list_attachments(std::vector<std::string>* unreadable = nullptr);

}  // namespace egressclass
