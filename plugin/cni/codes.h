// SPDX-License-Identifier: Apache-2.0
// CNI error codes: 1-99 belong to the specification (1.1.0, section 5 "Error"), 100 and up are ours.
// The README lists them for operators; keep the two in step.
#pragma once

namespace egressclass::codes {

inline constexpr int kIncompatibleVersion = 1;
inline constexpr int kUnsupportedField = 2;
inline constexpr int kUnknownContainer = 3;
inline constexpr int kInvalidEnvironment = 4;
inline constexpr int kIoFailure = 5;
inline constexpr int kDecodingFailure = 6;
inline constexpr int kInvalidNetworkConfig = 7;
inline constexpr int kInvalidNetns = 8;
inline constexpr int kTryAgainLater = 11;
inline constexpr int kPluginNotAvailable = 50;
inline constexpr int kLimitedConnectivity = 51;

inline constexpr int kUnknownClass = 100;        // the pod names a class that the configuration lacks
inline constexpr int kNotEntitled = 101;         // the pod's namespace may not use the class it names
inline constexpr int kConfigUnreadable = 102;    // nobody can say whether the pod has a class
inline constexpr int kDatapathNotApplied = 103;  // `egressctl apply` has not run since boot
inline constexpr int kNoHostVeth = 104;          // the interface is no veth: nothing to attach to
inline constexpr int kAttachFailed = 105;        // the kernel refused the program, a map entry or the pin
inline constexpr int kCheckFailed = 106;         // CHECK found something other than what ADD left
inline constexpr int kStateFailed = 107;         // the attachment's record cannot be read or written
inline constexpr int kInternal = 999;

}  // namespace egressclass::codes
