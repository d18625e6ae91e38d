// Matchers that Debian's Abseil lacks.
#pragma once

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cerrno>

#include "engine/base/status.h"

namespace stasis::testing {

inline const Status& StatusOf(const Status& status) { return status; }
template <typename T>
const Status& StatusOf(const Result<T>& result) {
  return result.status();
}

MATCHER(IsOk, "is OK") {
  *result_listener << ToText(StatusOf(arg));
  return StatusOf(arg).ok();
}

MATCHER_P(StatusIs, code, "has the code " + absl::StatusCodeToString(code)) {
  *result_listener << ToText(StatusOf(arg));
  return StatusOf(arg).code() == code;
}

MATCHER_P2(StatusIs, code, text_matcher, "has the code " + absl::StatusCodeToString(code)) {
  *result_listener << ToText(StatusOf(arg));
  return StatusOf(arg).code() == code && ::testing::Matches(text_matcher)(Message(StatusOf(arg)));
}

MATCHER(SyscallSucceeds, "succeeds") {
  *result_listener << "errno " << errno;
  return arg >= 0;
}

MATCHER_P(SyscallFailsWithErrno, error, "fails with errno") {
  *result_listener << "errno " << errno;
  return arg < 0 && errno == error;
}

}  // namespace stasis::testing
