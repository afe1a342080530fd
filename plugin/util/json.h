// SPDX-License-Identifier: Apache-2.0
// JSON from sources that are not trusted: bounded nesting, no exceptions, time linear in the text.
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "util/result.h"

namespace egressclass {

using Json = nlohmann::ordered_json;  // ordered: what is passed on keeps its order

inline constexpr std::size_t kMaxJsonDepth = 64;

/// Parses one document. The error's msg is the place, "line L, column C", its details the reason.
/// Of a key that an object holds twice the last value counts, as in most parsers; `duplicates`
/// receives the paths of such keys ("classes[2].name").
Result<Json> parse_json(const std::string& text, std::vector<std::string>* duplicates = nullptr);

/// The text of the member `key` of an object's text, which parse_json() has accepted: byte for byte, also numbers that
/// fit no number of ours. Empty when there is none, or when that is not plain to see (a key with an escape).
std::string_view member_text(std::string_view object, std::string_view key);

/// One line of JSON; bytes that are no UTF-8 become the replacement character.
std::string dump_json(const Json& json);

/// The member `key` when it is a number from 0 to `highest`; else no value.
std::optional<std::uint32_t> unsigned_member(const Json& object, const char* key, std::uint32_t highest = UINT32_MAX);

/// The member `key`; nullptr when `object` is no object, or has no such key or only null for it.
const Json* find_member(const Json& object, const char* key);

}  // namespace egressclass
