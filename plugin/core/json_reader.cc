// SPDX-License-Identifier: Apache-2.0
#include "core/json_reader.h"

#include <algorithm>
#include <charconv>
#include <numeric>
#include <string_view>

#include "util/text.h"

namespace egressclass {
namespace {

// A file beyond these is no configuration; its problems alone would fill the memory.
constexpr std::size_t kMaxItems = 400000;
constexpr std::size_t kMaxKeys = 1000;

std::string lower(std::string text) {
  std::transform(text.begin(), text.end(), text.begin(),
                 [](char c) { return c >= 'A' && c <= 'Z' ? static_cast<char>(c - 'A' + 'a') : c; });
  return text;
}

// Levenshtein's distance, one row at a time.
std::size_t distance(const std::string& from, const std::string& to) {
  std::vector<std::size_t> row(to.size() + 1);
  std::iota(row.begin(), row.end(), 0U);
  for (std::size_t i = 0; i < from.size(); ++i) {
    std::size_t diagonal = std::exchange(row[0], i + 1);
    for (std::size_t j = 0; j < to.size(); ++j) {
      const std::size_t changed = diagonal + (from[i] == to[j] ? 0 : 1);
      diagonal = row[j + 1];
      row[j + 1] = std::min({changed, row[j] + 1, diagonal + 1});
    }
  }
  return row.back();
}

std::string did_you_mean(const std::string& key, std::initializer_list<const char*> known) {
  constexpr std::size_t kNear = 2;
  for (const std::string candidate : known)
    if (key.size() <= candidate.size() + kNear && distance(lower(key), lower(candidate)) <= kNear)
      return ": did you mean \"" + candidate + "\"?";
  return {};
}

}  // namespace

void Field::refuse(const std::string& reason) const {
  const std::string shown = value_->is_structured() && value_->size() > 8 ? value_->type_name() : dump_json(*value_);
  problems_->push_back({path_, printable(shown), reason});
}

void Field::refuse_missing(const char* key, const std::string& reason) const {
  problems_->push_back({path_.empty() ? key : path_ + '.' + key, "", reason});
}

std::optional<std::string> Field::text() const {
  if (value_->is_string()) return value_->get_ref<const std::string&>();
  refuse("must be a text");
  return {};
}

std::optional<bool> Field::boolean() const {
  if (value_->is_boolean()) return value_->get<bool>();
  refuse("must be true or false");
  return {};
}

std::optional<std::uint32_t> Field::number(std::uint32_t lowest, std::uint32_t highest) const {
  if (value_->is_number_unsigned())
    if (const auto number = value_->get<std::uint64_t>(); number >= lowest && number <= highest)
      return static_cast<std::uint32_t>(number);
  refuse("must be a number from " + std::to_string(lowest) + " to " + std::to_string(highest));
  return {};
}

std::optional<std::uint32_t> Field::bits() const {
  if (value_->is_number_unsigned() && value_->get<std::uint64_t>() <= UINT32_MAX) return value_->get<std::uint32_t>();
  if (value_->is_string()) {
    const std::string_view text = value_->get_ref<const std::string&>();
    std::uint32_t bits = 0;
    const char* end = text.data() + text.size();
    if (text.starts_with("0x") && text.size() > 2)
      if (const auto read = std::from_chars(text.data() + 2, end, bits, 16); read.ec == std::errc() && read.ptr == end)
        return bits;
  }
  refuse("must be 32 bits: a number, or hexadecimal text as \"0x1f\"");
  return {};
}

std::vector<Field> Field::items(bool may_be_empty) const {
  std::vector<Field> items;
  if (!value_->is_array()) {
    refuse("must be an array");
    return items;
  }
  if (value_->empty() && !may_be_empty) refuse("must not be empty");
  if (value_->size() > kMaxItems) {
    refuse("must not have more than " + std::to_string(kMaxItems) + " entries");
    return items;
  }
  items.reserve(value_->size());
  for (const Json& item : *value_)
    items.emplace_back(item, path_ + '[' + std::to_string(items.size()) + ']', *problems_);
  return items;
}

bool Field::is_object_of(std::initializer_list<const char*> known) const {
  if (!value_->is_object()) {
    refuse("must be an object");
    return false;
  }
  if (value_->size() > kMaxKeys) {
    refuse("has too many keys");
    return false;
  }
  for (const auto& [key, value] : value_->items())
    if (std::find(known.begin(), known.end(), key) == known.end())
      at(value, key).refuse("unknown key" + did_you_mean(key, known));
  return true;
}

std::optional<Field> Field::member(const char* key) const {
  const auto entry = value_->find(key);
  if (entry == value_->end()) return {};
  return at(*entry, key);
}

std::optional<Field> Field::required(const char* key) const {
  auto found = member(key);
  if (!found) refuse_missing(key, "required, but missing");
  return found;
}

Field Field::at(const Json& value, const std::string& key) const {
  return {value, (path_.empty() ? "" : path_ + '.') + printable(key), *problems_};
}

}  // namespace egressclass
