#include "engine/proc/fdinfo.h"

#include <algorithm>
#include <type_traits>

#include "engine/proc/text.h"

namespace stasis::engine {
namespace {

using text::Cut;
using text::CutWord;
using text::Field;
using text::Number;
using text::ReadField;

// "(12, 345)": seconds and nanoseconds.
Status ReadTime(std::string_view text, std::string_view key, timespec& time) {
  std::optional<std::string_view> field = Field(text, key);
  if (!field || !field->starts_with('(') || !field->ends_with(')')) {
    return DataLoss("no line \"" + std::string(key) + ": (s, ns)\"");
  }
  field->remove_prefix(1);
  field->remove_suffix(1);
  ASSIGN_OR_RETURN(time.tv_sec, Number<std::int64_t>(text::Trim(Cut(*field, ','))));
  ASSIGN_OR_RETURN(time.tv_nsec, Number<std::int64_t>(text::Trim(*field)));
  return OkStatus();
}

// "tfd:        4 events:       19 data:                7  pos:0 ino:40e sdev:10"; the name and its
// number may have blanks between them.
Result<EpollTarget> ParseEpollLine(std::string_view line) {
  const auto value_of = [&](std::string_view key) {
    const std::size_t found = line.find(key);
    if (found == std::string_view::npos) return std::string_view();
    std::string_view rest = line.substr(found + key.size());
    return CutWord(rest);
  };
  EpollTarget target;
  ASSIGN_OR_RETURN(target.fd, Number<int>(value_of("tfd:")));
  ASSIGN_OR_RETURN(target.events, Number<std::uint32_t>(value_of("events:"), 16));
  ASSIGN_OR_RETURN(target.data, Number<std::uint64_t>(value_of("data:"), 16));
  ASSIGN_OR_RETURN(const std::int64_t pos, Number<std::int64_t>(value_of("pos:")));
  target.pos = static_cast<std::uint64_t>(pos);
  ASSIGN_OR_RETURN(target.inode, Number<std::uint64_t>(value_of("ino:"), 16));
  ASSIGN_OR_RETURN(target.device, Number<std::uint32_t>(value_of("sdev:"), 16));
  return target;
}

// Pairs of hexadecimal digits, a byte each.
Result<std::string> ParseBytes(std::string_view digits) {
  std::string bytes;
  for (std::size_t i = 0; i + 1 < digits.size(); i += 2) {
    ASSIGN_OR_RETURN(const int byte, Number<int>(digits.substr(i, 2), 16));
    bytes.push_back(static_cast<char>(byte));
  }
  return bytes;
}

// All numbers are hexadecimal: "inotify wd:1 ino:1d20 sdev:fd00000 mask:fce ignored_mask:0
// fhandle-bytes:8 fhandle-type:1 f_handle:201d…"
template <typename Number16>
Status ReadHex(std::string_view value, Number16& target) {
  ASSIGN_OR_RETURN(target, Number<Number16>(value, 16));
  return OkStatus();
}

// What the lines of inotify and fanotify have in common.
Status ReadWatched(std::string_view key, std::string_view value, WatchedInode& watch) {
  if (key == "ino") return ReadHex(value, watch.inode);
  if (key == "sdev") return ReadHex(value, watch.device);
  if (key == "mask") return ReadHex(value, watch.mask);
  if (key == "ignored_mask") return ReadHex(value, watch.ignored_mask);
  if (key == "fhandle-type") return ReadHex(value, watch.handle_type);
  if (key != "f_handle") return OkStatus();
  ASSIGN_OR_RETURN(watch.handle, ParseBytes(value));
  return OkStatus();
}

Result<InotifyWatch> ParseInotifyLine(std::string_view line) {
  InotifyWatch watch;
  for (std::string_view value : text::Words(line)) {
    const std::string_view key = Cut(value, ':');
    if (key == "wd") RETURN_IF_ERROR(ReadHex(value, watch.number));
    RETURN_IF_ERROR(ReadWatched(key, value, watch));
  }
  return watch;
}

// "fanotify flags:17 event-flags:88000", or a mark: "fanotify ino:…", "fanotify mnt_id:…", "fanotify sdev:…".
Status ParseFanotifyLine(std::string_view line, FanotifyInfo& info) {
  FanotifyMark mark;
  bool is_mark = false, has_inode = false;
  for (std::string_view value : text::Words(line)) {
    const std::string_view key = Cut(value, ':');
    if (key == "flags") RETURN_IF_ERROR(ReadHex(value, info.flags));
    if (key == "event-flags") RETURN_IF_ERROR(ReadHex(value, info.event_flags));
    if (key == "mnt_id") RETURN_IF_ERROR(ReadHex(value, mark.mount.emplace()));
    if (key == "mflags") RETURN_IF_ERROR(ReadHex(value, mark.flags));
    is_mark = is_mark || key == "mflags";
    has_inode = has_inode || key == "ino";
    RETURN_IF_ERROR(ReadWatched(key, value, mark));
  }
  mark.whole_device = !has_inode && !mark.mount;
  if (is_mark) info.marks.push_back(std::move(mark));
  return OkStatus();
}

}  // namespace

Result<Fdinfo> ParseFdinfo(std::string_view text) {
  Fdinfo info;
  std::int64_t pos = 0;  // the kernel prints a signed number
  RETURN_IF_ERROR(ReadField(text, "pos", pos));
  info.pos = static_cast<std::uint64_t>(pos);
  RETURN_IF_ERROR(ReadField(text, "flags", info.flags, 8));
  RETURN_IF_ERROR(ReadField(text, "mnt_id", info.mnt_id));
  if (Field(text, "ino")) RETURN_IF_ERROR(ReadField(text, "ino", info.inode));
  return info;
}

Result<std::vector<FileLock>> ParseLocks(std::string_view text) {
  std::vector<FileLock> locks;
  while (!text.empty()) {
    std::string_view line = text::CutLine(text);
    if (!line.starts_with("lock:")) continue;
    // "lock:\t1: FLOCK  ADVISORY  WRITE 359 00:13:11691 0 EOF"
    const std::vector<std::string_view> words = text::Words(line);
    if (words.size() != 9) return DataLoss("a strange line \"" + std::string(line) + "\"");
    FileLock& lock = locks.emplace_back();
    if (words[2] == "POSIX") lock.kind = FileLock::Kind::kPosix;
    if (words[2] == "FLOCK") lock.kind = FileLock::Kind::kFlock;
    if (words[2] == "OFDLCK") lock.kind = FileLock::Kind::kOpenFile;
    lock.breaking = words[2] == "LEASE" && words[3] == "BREAKING";
    if (lock.breaking || (words[2] == "LEASE" && words[3] == "ACTIVE")) {
      lock.kind = FileLock::Kind::kLease;
    }
    lock.write = words[4] == "WRITE";
    lock.stays_to_read = lock.breaking && words[4] == "READ";
    ASSIGN_OR_RETURN(lock.start, Number<std::uint64_t>(words[7]));
    lock.end = FileLock::kNoEnd;
    if (words[8] == "EOF") continue;
    ASSIGN_OR_RETURN(lock.end, Number<std::uint64_t>(words[8]));
  }
  return locks;
}

Result<std::vector<InotifyWatch>> ParseInotify(std::string_view text) {
  std::vector<InotifyWatch> watches;
  while (!text.empty()) {
    const std::string_view line = text::CutLine(text);
    if (!line.starts_with("inotify ")) continue;
    ASSIGN_OR_RETURN(watches.emplace_back(), ParseInotifyLine(line));
  }
  std::ranges::sort(watches, {}, &InotifyWatch::number);
  return watches;
}

Result<FanotifyInfo> ParseFanotify(std::string_view text) {
  FanotifyInfo info;
  while (!text.empty()) {
    const std::string_view line = text::CutLine(text);
    if (line.starts_with("fanotify ")) RETURN_IF_ERROR(ParseFanotifyLine(line, info));
  }
  return info;
}

Result<EventfdInfo> ParseEventfd(std::string_view text) {
  EventfdInfo info;
  RETURN_IF_ERROR(ReadField(text, "eventfd-count", info.counter, 16));
  if (const auto flag = Field(text, "eventfd-semaphore")) info.semaphore = *flag == "1";
  return info;
}

Result<std::uint64_t> ParseSignalfdMask(std::string_view text) {
  std::uint64_t mask = 0;
  RETURN_IF_ERROR(ReadField(text, "sigmask", mask, 16));
  return mask;
}

Result<TimerfdInfo> ParseTimerfd(std::string_view text) {
  TimerfdInfo info;
  RETURN_IF_ERROR(ReadField(text, "clockid", info.clock_id));
  RETURN_IF_ERROR(ReadField(text, "ticks", info.ticks));
  RETURN_IF_ERROR(ReadField(text, "settime flags", info.settime_flags, 8));
  RETURN_IF_ERROR(ReadTime(text, "it_value", info.value));
  RETURN_IF_ERROR(ReadTime(text, "it_interval", info.interval));
  return info;
}

Result<std::vector<EpollTarget>> ParseEpollTargets(std::string_view text) {
  std::vector<EpollTarget> targets;
  while (!text.empty()) {
    const std::string_view line = text::CutLine(text);
    if (!line.starts_with("tfd:")) continue;
    ASSIGN_OR_RETURN(targets.emplace_back(), ParseEpollLine(line));
  }
  return targets;
}

}  // namespace stasis::engine
