#include "engine/tasks/clocks.h"

#include <fcntl.h>
#include <time.h>

#include <string>
#include <vector>

#include "engine/base/io.h"
#include "engine/proc/text.h"

namespace stasis::engine {
namespace {

using std::chrono::nanoseconds;
using std::chrono::seconds;

nanoseconds Now(clockid_t clock) {
  timespec now = {};
  ::clock_gettime(clock, &now);
  return seconds(now.tv_sec) + nanoseconds(now.tv_nsec);
}

}  // namespace

Result<Clocks> ClockOffsets(int proc_fd) {
  Clocks offsets;
  const Result<std::string> text = ReadFileAt(proc_fd, "timens_offsets");
  if (text.status().code() == StatusCode::kNotFound) return offsets;
  RETURN_IF_ERROR(text.status());
  for (std::string_view rest = *text; !rest.empty();) {
    const std::vector<std::string_view> words = text::Words(text::CutLine(rest));
    if (words.size() != 3) return DataLoss("/proc/PID/timens_offsets has another form");
    ASSIGN_OR_RETURN(const auto whole, text::Number<std::int64_t>(words[1]));
    ASSIGN_OR_RETURN(const auto part, text::Number<std::int64_t>(words[2]));
    (words[0] == "monotonic" ? offsets.monotonic : offsets.boottime) =
        seconds(whole) + nanoseconds(part);
  }
  return offsets;
}

Result<Clocks> ReadClocks(int proc_fd) {
  ASSIGN_OR_RETURN(const UniqueFd self, OpenAt(AT_FDCWD, "/proc/self", O_DIRECTORY));
  ASSIGN_OR_RETURN(const Clocks ours, ClockOffsets(self.get()));
  ASSIGN_OR_RETURN(const Clocks theirs, ClockOffsets(proc_fd));
  return Clocks{.monotonic = Now(CLOCK_MONOTONIC) - ours.monotonic + theirs.monotonic,
                .boottime = Now(CLOCK_BOOTTIME) - ours.boottime + theirs.boottime};
}

}  // namespace stasis::engine
