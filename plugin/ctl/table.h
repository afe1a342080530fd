// SPDX-License-Identifier: Apache-2.0
// Columns for people, as wide as what is in them.
#pragma once

#include <string>
#include <vector>

namespace egressclass::ctl {

class Table {
 public:
  explicit Table(std::vector<std::string> header) { rows_.push_back(std::move(header)); }
  void add(std::vector<std::string> row) { rows_.push_back(std::move(row)); }
  /// To stdout; empty cells as "-".
  void print() const;

 private:
  std::vector<std::vector<std::string>> rows_;
};

}  // namespace egressclass::ctl
