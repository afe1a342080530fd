// SPDX-License-Identifier: Apache-2.0
// Errors are values. A function that can fail returns Result<T>; the caller
// handles the error, or passes it on:
//
//   Result<Fd> fd = open_netns(path);
//   if (!fd) return fd.error();
//   use(*fd);
//
// Exceptions stay inside the one function that calls a throwing library.
#pragma once

#include <string>
#include <utility>
#include <variant>

namespace egressclass {

/// What went wrong, in the form in which CNI wants it (SPEC section 5 "Error").
/// `code` is one of cni/codes.h, `msg` says what failed in one short sentence, and `details`
/// names the object, the step, errno's text and what to do about it.
struct Error {
  int code = 0;
  std::string msg;
  std::string details;
};

/// An Error from a failed system call: "<what>: <object>: <strerror(err)>". `hint` is what to do about it.
Error system_error(const std::string& what, const std::string& object, int err, const std::string& hint = {});

/// An Error that is no system call's fault.
Error make_error(std::string msg, std::string details = {});

struct Ok {};

template <class T = Ok>
class [[nodiscard]] Result {
 public:
  Result(T value) : state_(std::in_place_index<0>, std::move(value)) {}      // NOLINT(google-explicit-constructor)
  Result(Error error) : state_(std::in_place_index<1>, std::move(error)) {}  // NOLINT(google-explicit-constructor)

  explicit operator bool() const { return state_.index() == 0; }
  T& operator*() { return std::get<0>(state_); }
  const T& operator*() const { return std::get<0>(state_); }
  T* operator->() { return &std::get<0>(state_); }
  const T* operator->() const { return &std::get<0>(state_); }
  Error& error() { return std::get<1>(state_); }
  const Error& error() const { return std::get<1>(state_); }

 private:
  std::variant<T, Error> state_;
};

using Status = Result<Ok>;

}  // namespace egressclass
