// SPDX-License-Identifier: Apache-2.0
// Reads typed values from a JSON document, and notes every value that is not what it has to be.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <optional>
#include <string>
#include <vector>

#include "core/config.h"
#include "util/json.h"

namespace egressclass {

/// One value of the document, and its place there. The readers below give nothing, and note a problem,
/// when the value has another type. Document and problems must outlive it.
class Field {
 public:
  Field(const Json& value, std::string path, std::vector<ConfigProblem>& problems)
      : value_(&value), path_(std::move(path)), problems_(&problems) {}

  /// Notes that this value cannot be, and why.
  void refuse(const std::string& reason) const;
  /// Notes that a key of this object is missing.
  void refuse_missing(const char* key, const std::string& reason) const;
  /// How many problems are noted so far, of all of the document.
  std::size_t problem_count() const { return problems_->size(); }
  const std::string& path() const { return path_; }

  std::optional<std::string> text() const;
  std::optional<bool> boolean() const;
  std::optional<std::uint32_t> number(std::uint32_t lowest, std::uint32_t highest) const;
  /// 32 bits: a number, or hexadecimal text as "0x1f7f".
  std::optional<std::uint32_t> bits() const;
  /// The elements of an array; none when it is no array.
  std::vector<Field> items(bool may_be_empty = true) const;

  bool is_object() const { return value_->is_object(); }
  /// Whether this is an object, else it is a problem; each of its keys that is not among `known` is a problem of its
  /// own.
  bool is_object_of(std::initializer_list<const char*> known) const;
  /// The value of a key of an object. null is a value (and of no type that is read here).
  std::optional<Field> member(const char* key) const;
  /// The same, but a missing key is a problem.
  std::optional<Field> required(const char* key) const;

 private:
  Field at(const Json& value, const std::string& key) const;

  const Json* value_;
  std::string path_;
  std::vector<ConfigProblem>* problems_;
};

}  // namespace egressclass
