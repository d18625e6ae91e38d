// The one error vocabulary from ptrace(2) to the CRI answer: absl::Status, whose codes are gRPC's.
#pragma once

#include <absl/status/status.h>
#include <absl/status/statusor.h>

#include <string>
#include <string_view>
#include <utility>

namespace stasis {

using Status = absl::Status;
template <typename T>
using Result = absl::StatusOr<T>;
using absl::OkStatus;
using absl::StatusCode;

/// A Status with `code` and `message`. (Debian's absl::string_view is not std::string_view: only
/// status.cc converts.)
Status MakeStatus(StatusCode code, std::string_view message);

/// The Status of a failed system call. `what` names the call and its object, without "failed to";
/// the text of `error` and the number itself (ErrnoOf) are added.
Status SyscallError(int error, std::string_view what);

/// The errno that SyscallError put into `status`, or 0.
int ErrnoOf(const Status& status);

/// `status` with "`context`: " put before its message; code and payloads are kept. OK and Cancelled stay as they are.
Status Annotate(const Status& status, std::string_view context);

/// The message of `status` as the standard type.
std::string Message(const Status& status);

/// "NOT_FOUND: message": how an error is shown to a person.
std::string ToText(const Status& status);

inline Status InvalidArgument(std::string_view m) {
  return MakeStatus(StatusCode::kInvalidArgument, m);
}
inline Status NotFound(std::string_view m) { return MakeStatus(StatusCode::kNotFound, m); }
inline Status AlreadyExists(std::string_view m) {
  return MakeStatus(StatusCode::kAlreadyExists, m);
}
inline Status PermissionDenied(std::string_view m) {
  return MakeStatus(StatusCode::kPermissionDenied, m);
}
inline Status FailedPrecondition(std::string_view m) {
  return MakeStatus(StatusCode::kFailedPrecondition, m);
}
inline Status ResourceExhausted(std::string_view m) {
  return MakeStatus(StatusCode::kResourceExhausted, m);
}
inline Status Unimplemented(std::string_view m) {
  return MakeStatus(StatusCode::kUnimplemented, m);
}
inline Status Unavailable(std::string_view m) { return MakeStatus(StatusCode::kUnavailable, m); }
inline Status DataLoss(std::string_view m) { return MakeStatus(StatusCode::kDataLoss, m); }
inline Status Internal(std::string_view m) { return MakeStatus(StatusCode::kInternal, m); }
inline Status Cancelled(std::string_view m) { return MakeStatus(StatusCode::kCancelled, m); }
inline Status DeadlineExceeded(std::string_view m) {
  return MakeStatus(StatusCode::kDeadlineExceeded, m);
}
inline Status Aborted(std::string_view m) { return MakeStatus(StatusCode::kAborted, m); }

}  // namespace stasis

#define STASIS_CONCAT_(a, b) a##b
#define STASIS_CONCAT(a, b) STASIS_CONCAT_(a, b)

#define RETURN_IF_ERROR(expression)                                                               \
  do {                                                                                            \
    if (::stasis::Status stasis_status = (expression); !stasis_status.ok()) return stasis_status; \
  } while (false)

// `declaration` may declare a variable, and `result` is a name: neither can stand in parentheses.
// NOLINTBEGIN(bugprone-macro-parentheses)
#define ASSIGN_OR_RETURN(declaration, expression) \
  ASSIGN_OR_RETURN_(STASIS_CONCAT(stasis_result_, __LINE__), declaration, expression)
#define ASSIGN_OR_RETURN_(result, declaration, expression) \
  auto result = (expression);                              \
  if (!result.ok()) return std::move(result).status();     \
  declaration = std::move(result).value()
// NOLINTEND(bugprone-macro-parentheses)
