#include "engine/base/status.h"

#include <absl/strings/cord.h>
#include <absl/strings/numbers.h>
#include <absl/strings/str_cat.h>

#include <cerrno>
#include <system_error>

namespace stasis {
namespace {

constexpr char kErrnoPayload[] = "stasis/errno";

absl::string_view ToAbsl(std::string_view text) { return {text.data(), text.size()}; }

StatusCode CodeOf(int error) {
  switch (error) {
    case ENOENT:
    case ESRCH:
    case ENXIO:
    case ENODEV:
    case ECHILD:
      return StatusCode::kNotFound;
    case EPERM:
    case EACCES:
    case EROFS:
      return StatusCode::kPermissionDenied;
    case EEXIST:
    case EADDRINUSE:
      return StatusCode::kAlreadyExists;
    case EINVAL:
    case ENAMETOOLONG:
      return StatusCode::kInvalidArgument;
    case ENOSPC:
    case EDQUOT:
    case ENOMEM:
    case EMFILE:
    case ENFILE:
    case EFBIG:
      return StatusCode::kResourceExhausted;
    case ENOSYS:
    case EOPNOTSUPP:
      return StatusCode::kUnimplemented;
    case ETIMEDOUT:
      return StatusCode::kDeadlineExceeded;
    case ECANCELED:
      return StatusCode::kCancelled;
    case EBUSY:
    case ENOTDIR:
    case EISDIR:
    case ENOTEMPTY:
    case ENOEXEC:
      return StatusCode::kFailedPrecondition;
    case ECONNREFUSED:
    case ECONNRESET:
    case EPIPE:
    case EAGAIN:
      return StatusCode::kUnavailable;
    default:
      return StatusCode::kInternal;
  }
}

}  // namespace

Status MakeStatus(StatusCode code, std::string_view message) {
  return Status(code, ToAbsl(message));
}

Status SyscallError(int error, std::string_view what) {
  Status status(CodeOf(error),
                absl::StrCat(ToAbsl(what), ": ", std::generic_category().message(error)));
  status.SetPayload(kErrnoPayload, absl::Cord(absl::StrCat(error)));
  return status;
}

int ErrnoOf(const Status& status) {
  const auto payload = status.GetPayload(kErrnoPayload);
  int error = 0;
  if (!payload || !absl::SimpleAtoi(std::string(*payload), &error)) return 0;
  return error;
}

Status Annotate(const Status& status, std::string_view context) {
  // What was called off has nothing to do with where it was just then.
  if (status.ok() || status.code() == StatusCode::kCancelled) return status;
  Status annotated(status.code(), absl::StrCat(ToAbsl(context), ": ", status.message()));
  status.ForEachPayload([&](absl::string_view type, const absl::Cord& payload) {
    annotated.SetPayload(type, payload);
  });
  return annotated;
}

std::string Message(const Status& status) { return std::string(status.message()); }

std::string ToText(const Status& status) {
  if (status.ok()) return "OK";
  return absl::StrCat(absl::StatusCodeToString(status.code()), ": ", status.message());
}

}  // namespace stasis
