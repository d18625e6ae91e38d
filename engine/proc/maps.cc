#include "engine/proc/maps.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>

#include "engine/base/io.h"
#include "engine/base/unique_fd.h"
#include "engine/proc/text.h"

namespace stasis::engine {
namespace {

using text::Cut;
using text::CutWord;
using text::Number;

// Only newline is escaped (fs/proc/task_mmu.c): a backslash stands for itself.
std::string UnescapePath(std::string_view text) {
  std::string path;
  while (true) {
    const std::size_t escape = text.find("\\012");
    path += text.substr(0, escape);
    if (escape == std::string_view::npos) return path;
    path += '\n';
    text.remove_prefix(escape + 4);
  }
}

// "7f12a000-7f12b000 r-xp 00001000 fe:00 326269                     /usr/bin/head"
Result<Vma> ParseAreaLine(std::string_view line) {
  Vma vma;
  std::string_view range = CutWord(line);
  ASSIGN_OR_RETURN(vma.start, Number<std::uint64_t>(Cut(range, '-'), 16));
  ASSIGN_OR_RETURN(vma.end, Number<std::uint64_t>(range, 16));
  const std::string_view access = CutWord(line);
  if (vma.end <= vma.start || access.size() != 4) return DataLoss("no area");
  if (access[0] == 'r') vma.prot |= PROT_READ;
  if (access[1] == 'w') vma.prot |= PROT_WRITE;
  if (access[2] == 'x') vma.prot |= PROT_EXEC;
  vma.shared = access[3] == 's';
  ASSIGN_OR_RETURN(vma.offset, Number<std::uint64_t>(CutWord(line), 16));
  std::string_view device = CutWord(line);
  ASSIGN_OR_RETURN(vma.dev_major, Number<std::uint32_t>(Cut(device, ':'), 16));
  ASSIGN_OR_RETURN(vma.dev_minor, Number<std::uint32_t>(device, 16));
  ASSIGN_OR_RETURN(vma.inode, Number<std::uint64_t>(CutWord(line)));
  // Blanks at the end belong to the path.
  line.remove_prefix(std::min(line.find_first_not_of(' '), line.size()));
  vma.path = UnescapePath(line);
  return vma;
}

// A line "Name: value" of smaps about `vma`; most are of no use here.
Status ReadDetail(std::string_view line, Vma& vma) {
  const std::string_view key = Cut(line, ':');
  if (key == "VmFlags") {
    for (const std::string_view word : text::Words(line)) {
      if (word.size() != 2) return DataLoss("a flag of other than two letters");
      vma.flags.Add(word);
    }
  } else if (key == "KernelPageSize") {
    ASSIGN_OR_RETURN(const std::uint64_t kibibytes, Number<std::uint64_t>(CutWord(line)));
    vma.kernel_page_size = kibibytes * 1024;
  } else if (key == "Shared_Clean" || key == "Shared_Dirty" || key == "Swap") {
    ASSIGN_OR_RETURN(const std::uint64_t kibibytes, Number<std::uint64_t>(CutWord(line)));
    vma.shared_or_swapped += kibibytes * 1024;
  } else if (key == "Rss") {
    ASSIGN_OR_RETURN(const std::uint64_t kibibytes, Number<std::uint64_t>(CutWord(line)));
    vma.resident = kibibytes * 1024;
  } else if (key == "ProtectionKey") {
    ASSIGN_OR_RETURN(vma.protection_key, Number<int>(text::Trim(line)));
  }
  return OkStatus();
}

// An area's line begins with a hexadecimal number in lower case; a detail's with a capital letter.
bool IsDetail(std::string_view line) { return line.front() >= 'A' && line.front() <= 'Z'; }

// Adds the areas of `text`, whole lines.
Status Parse(std::string_view text, std::string_view name, std::vector<Vma>& vmas) {
  while (!text.empty()) {
    const std::string_view line = text::CutLine(text);
    if (line.empty()) return DataLoss(std::string(name) + ": an empty line");
    Status status;
    if (!IsDetail(line)) {
      Result<Vma> vma = ParseAreaLine(line);
      status = vma.status();
      if (vma.ok()) vmas.push_back(*std::move(vma));
    } else if (!vmas.empty()) {
      status = ReadDetail(line, vmas.back());
    }
    if (!status.ok()) {
      return Annotate(status, std::string(name) + ": \"" + std::string(line.substr(0, 128)) + "\"");
    }
  }
  return OkStatus();
}

Result<std::vector<Vma>> ParseAll(std::string_view text, std::string_view name) {
  std::vector<Vma> vmas;
  RETURN_IF_ERROR(Parse(text, name, vmas));
  return vmas;
}

// Piece by piece: of ten thousand threads it is 30 MB of text.
Status ReadAreas(int proc_fd, const char* file, const TakeVma& take) {
  ASSIGN_OR_RETURN(const UniqueFd fd, OpenAt(proc_fd, file, O_RDONLY));
  std::vector<Vma> some;  // the last of which may not be whole
  std::string text;
  std::array<char, 32768> piece;
  while (true) {
    const ssize_t got = ::read(fd.get(), piece.data(), piece.size());
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) return SyscallError(errno, std::string("read ") + file);
    text.append(piece.data(), static_cast<std::size_t>(got));
    const std::size_t whole = got == 0 ? text.size() : text.rfind('\n') + 1;
    RETURN_IF_ERROR(Parse(std::string_view(text).substr(0, whole), file, some));
    const auto ready = got == 0 || some.empty() ? some.end() : some.end() - 1;
    for (auto vma = some.begin(); vma != ready; ++vma) RETURN_IF_ERROR(take(*vma));
    if (got == 0) return OkStatus();
    some.erase(some.begin(), ready);
    text.erase(0, whole);
  }
}

Result<std::vector<Vma>> AllAreas(int proc_fd, const char* file, std::size_t expected) {
  std::vector<Vma> vmas;
  vmas.reserve(expected);
  RETURN_IF_ERROR(ReadAreas(proc_fd, file, [&vmas](Vma& vma) {
    vmas.push_back(std::move(vma));
    return OkStatus();
  }));
  vmas.shrink_to_fit();
  return vmas;
}

}  // namespace

std::size_t VmFlags::Find(std::string_view flag) const {
  for (std::size_t at = 0; at < letters_.size(); at += 2) {
    if (letters().substr(at, 2) == flag) return at;
  }
  return letters_.size();
}

void VmFlags::Erase(std::string_view flag) {
  const std::size_t at = Find(flag);
  if (at == letters_.size()) return;
  const auto found = letters_.begin() + static_cast<std::ptrdiff_t>(at);
  letters_.erase(found, found + 2);
}

void VmFlags::KeepOnly(std::initializer_list<std::string_view> flags) {
  absl::InlinedVector<char, 24> kept;
  for (std::size_t at = 0; at < letters_.size(); at += 2) {
    const std::string_view flag = letters().substr(at, 2);
    if (std::ranges::find(flags, flag) != flags.end())
      kept.insert(kept.end(), flag.begin(), flag.end());
  }
  letters_ = std::move(kept);
}

Result<std::vector<Vma>> ParseMaps(std::string_view text) {
  return ParseAll(text, "/proc/PID/maps");
}

Result<std::vector<Vma>> ParseSmaps(std::string_view text) {
  return ParseAll(text, "/proc/PID/smaps");
}

Result<std::vector<Vma>> ReadMaps(int proc_fd, std::size_t expected) {
  return AllAreas(proc_fd, "maps", expected);
}

Result<std::vector<Vma>> ReadSmaps(int proc_fd) { return AllAreas(proc_fd, "smaps", 0); }

Status EachOfMaps(int proc_fd, const TakeVma& take) { return ReadAreas(proc_fd, "maps", take); }

Status EachOfSmaps(int proc_fd, const TakeVma& take) { return ReadAreas(proc_fd, "smaps", take); }

}  // namespace stasis::engine
