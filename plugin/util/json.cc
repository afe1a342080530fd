// SPDX-License-Identifier: Apache-2.0
#include "util/json.h"

#include <algorithm>
#include <string_view>
#include <unordered_map>
#include <utility>

#include "cni/codes.h"
#include "util/text.h"

namespace egressclass {
namespace {

// The members of an object that has no more are searched one by one, and are stored without growing: their keys are
// const, so a list that grows copies them, deeply, instead of moving them.
constexpr std::size_t kUsualMembers = 8;

// Builds the document from nlohmann's events. The library's own builder bounds no nesting, hides duplicate
// keys, and searches the whole object at every new key, so that a large hostile object would take minutes.
class Builder {
 public:
  Builder(const std::string& text, std::vector<std::string>* duplicates) : text_(text), duplicates_(duplicates) {}

  Result<Json> result() && {
    if (!error_.msg.empty()) return error_;
    return std::move(root_);
  }

  // The events' names and signatures are nlohmann's; false stops the parser.
  bool null() { return add(nullptr); }
  bool boolean(bool value) { return add(value); }
  bool number_integer(Json::number_integer_t value) { return add(value); }
  bool number_unsigned(Json::number_unsigned_t value) { return add(value); }
  bool number_float(Json::number_float_t value, const std::string& /*text*/) { return add(value); }
  bool string(std::string& value) { return add(std::move(value)); }
  bool binary(Json::binary_t& /*value*/) { return false; }
  bool start_object(std::size_t /*size*/);
  bool start_array(std::size_t /*size*/) { return open(Json::array()); }
  bool end_object() { return close(); }
  bool end_array() { return close(); }
  bool key(std::string& name);
  bool parse_error(std::size_t position, const std::string& token, const Json::exception& problem);

 private:
  struct Level {
    Json* container;                                    // stays where it is while it is open: only its own end grows
    std::unordered_map<std::string, std::size_t> keys;  // of an object with many: where each one is
    std::size_t current = 0;                            // of an object: the member whose value comes next
  };

  Json* add(Json value);
  bool open(Json container);
  bool close();
  std::string path_of(const std::string& name) const;

  const std::string& text_;
  std::vector<std::string>* duplicates_;
  Json root_;
  std::vector<Level> levels_;
  Error error_;
};

// The members as a plain list: its own insertion functions search it for the key first.
Json::object_t::Container& members(Json& object) { return object.get_ref<Json::object_t&>(); }

Json* Builder::add(Json value) {
  if (levels_.empty()) {
    root_ = std::move(value);
    return &root_;
  }
  Level& level = levels_.back();
  Json& place = level.container->is_array() ? level.container->get_ref<Json::array_t&>().emplace_back()
                                            : members(*level.container)[level.current].second;
  place = std::move(value);
  return &place;
}

bool Builder::open(Json container) {
  if (levels_.size() == kMaxJsonDepth) {
    error_ =
        Error{codes::kDecodingFailure, "document", "nested deeper than " + std::to_string(kMaxJsonDepth) + " levels"};
    return false;
  }
  Json* place = add(std::move(container));
  levels_.push_back({place, {}, 0});
  return true;
}

bool Builder::start_object(std::size_t /*size*/) {
  Json object = Json::object();
  members(object).reserve(kUsualMembers);
  return open(std::move(object));
}

bool Builder::close() {
  levels_.pop_back();
  return true;
}

bool Builder::key(std::string& name) {
  Level& level = levels_.back();
  auto& list = members(*level.container);
  const std::size_t next = list.size();
  level.current = next;
  if (next < kUsualMembers) {
    level.current =
        static_cast<std::size_t>(std::ranges::find(list, name, &Json::object_t::value_type::first) - list.begin());
  } else {
    if (level.keys.empty())
      for (std::size_t i = 0; i < next; ++i) level.keys.try_emplace(list[i].first, i);
    level.current = level.keys.try_emplace(name, next).first->second;
  }
  if (level.current == next)
    list.emplace_back(name, nullptr);
  else if (duplicates_ != nullptr)
    duplicates_->push_back(path_of(name));
  return true;
}

bool Builder::parse_error(std::size_t position, const std::string& /*token*/, const Json::exception& problem) {
  const std::string_view read(text_.data(), std::min(position, text_.size()));
  const auto line = 1 + std::count(read.begin(), read.end(), '\n');
  const auto column = read.size() - (read.rfind('\n') + 1);  // npos + 1 is 0: the first line

  std::string_view reason = problem.what();  // "[json.exception...] parse error at line 1, column 2: reason"
  const auto skip_past = [&reason](std::string_view mark) {
    if (const auto at = reason.find(mark); at != std::string_view::npos) reason.remove_prefix(at + mark.size());
  };
  skip_past("] ");
  if (reason.starts_with("parse error")) skip_past(": ");
  error_ = Error{codes::kDecodingFailure, "line " + std::to_string(line) + ", column " + std::to_string(column),
                 printable(reason, 200)};
  return false;
}

std::string Builder::path_of(const std::string& name) const {
  std::string path;
  for (std::size_t i = 0; i + 1 < levels_.size(); ++i) {
    Json& container = *levels_[i].container;
    if (container.is_array())
      path += '[' + std::to_string(container.size() - 1) + ']';
    else
      path += (path.empty() ? "" : ".") + members(container)[levels_[i].current].first;
  }
  return path + (path.empty() ? "" : ".") + name;
}

}  // namespace

Result<Json> parse_json(const std::string& text, std::vector<std::string>* duplicates) {
  Builder builder(text, duplicates);
  Json::sax_parse(text, &builder);
  return std::move(builder).result();
}

std::string_view member_text(std::string_view object, std::string_view key) {
  constexpr auto kNone = std::string_view::npos;
  std::string_view found;
  std::string_view name;
  std::size_t value = kNone;  // where the value of `name` begins
  int depth = 0;
  for (std::size_t i = 0; i < object.size(); ++i) {
    const char c = object[i];
    if (c == '"') {
      const std::size_t start = i + 1;
      for (++i; i < object.size() && object[i] != '"'; ++i)
        if (object[i] == '\\') ++i;
      if (depth != 1 || value != kNone) continue;
      name = object.substr(start, i - start);
      if (name.find('\\') != kNone) return {};
    } else if (c == '{' || c == '[') {
      ++depth;
    } else if (c == ':' && depth == 1) {
      value = i + 1;
    } else if (c == ',' || c == '}' || c == ']') {
      if (depth == 1 && value != kNone && name == key) found = object.substr(value, i - value);
      if (depth == 1) value = kNone;
      if (c != ',' && --depth == 0) break;
    }
  }
  constexpr const char* kBlanks = " \t\r\n";
  found.remove_prefix(std::min(found.find_first_not_of(kBlanks), found.size()));
  return found.substr(0, found.find_last_not_of(kBlanks) + 1);
}

std::string dump_json(const Json& json) { return json.dump(-1, ' ', false, Json::error_handler_t::replace); }

const Json* find_member(const Json& object, const char* key) {
  if (!object.is_object()) return nullptr;
  const auto entry = object.find(key);
  return entry == object.end() || entry->is_null() ? nullptr : &*entry;
}

std::optional<std::uint32_t> unsigned_member(const Json& object, const char* key, std::uint32_t highest) {
  const Json* member = find_member(object, key);
  if (member == nullptr || !member->is_number_unsigned() || member->get<std::uint64_t>() > highest) return {};
  return member->get<std::uint32_t>();
}

}  // namespace egressclass
