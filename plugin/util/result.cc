// SPDX-License-Identifier: Apache-2.0
#include "util/result.h"

#include <cerrno>
#include <system_error>

#include "cni/codes.h"

namespace egressclass {

Error system_error(const std::string& what, const std::string& object, int err, const std::string& hint) {
  std::string details = object + ": " + std::generic_category().message(err) + " (errno " + std::to_string(err) + ")";
  if (!hint.empty()) details += "; " + hint;
  return Error{codes::kInternal, what, std::move(details)};
}

Error make_error(std::string msg, std::string details) {
  return Error{codes::kInternal, std::move(msg), std::move(details)};
}

}  // namespace egressclass
