// Processes to be restored, and images of memory made by hand.
#pragma once

#include <fcntl.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstring>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "engine/base/io.h"
#include "engine/image/image_file.h"
#include "engine/memory/restore_memory.h"
#include "engine/memory/restore_vdso.h"
#include "engine/proc/maps.h"
#include "unit/support/matchers.h"

namespace stasis::engine::testing {

inline constexpr std::uint64_t kPage = 4096;
/// Where the tests put the areas of their images: nothing of a fresh program lies there.
inline constexpr std::uint64_t kBase = 0x2000'0000'0000;
inline constexpr std::uint64_t kOurArea = 0x1000'0000'0000;

/// Image files in memory.
class MapSource : public ImageSource {
 public:
  std::map<std::string, std::string, std::less<>> files;

  std::vector<std::string> Names() const override {
    std::vector<std::string> names;
    for (const auto& [name, bytes] : files) names.push_back(name);
    return names;
  }
  Result<std::uint64_t> Size(std::string_view name) const override {
    const auto file = files.find(name);
    if (file == files.end()) return NotFound(name);
    return file->second.size();
  }
  Status ReadAt(std::string_view name, std::uint64_t offset,
                std::span<std::byte> bytes) const override {
    const auto file = files.find(name);
    if (file == files.end()) return NotFound(name);
    if (offset > file->second.size() || file->second.size() - offset < bytes.size()) {
      return DataLoss(name);
    }
    std::memcpy(bytes.data(), file->second.data() + offset, bytes.size());
    return OkStatus();
  }
};

/// A program stopped before its first instruction, ready to be turned into another one.
class FreshProgram {
 public:
  /// With `user` not 0 it has no right to anything.
  explicit FreshProgram(uid_t user = 0) {
    int go[2];
    EXPECT_EQ(::pipe2(go, O_CLOEXEC), 0);
    pid_ = ::fork();
    if (pid_ == 0) Execute(go[0], user);
    const UniqueFd read_end(go[0]), write_end(go[1]);
    Result<Tracee> tracee =
        Tracee::Seize(pid_, PTRACE_O_TRACEEXEC | PTRACE_O_TRACECLONE | PTRACE_O_TRACESYSGOOD |
                                PTRACE_O_EXITKILL | PTRACE_O_SUSPEND_SECCOMP);
    EXPECT_THAT(tracee, ::stasis::testing::IsOk());
    EXPECT_EQ(::write(write_end.get(), "x", 1), 1);
    EXPECT_EQ(Wait().event, PTRACE_EVENT_EXEC);
    EXPECT_THAT(tracee->ContinueToSyscall(), ::stasis::testing::IsOk());
    EXPECT_EQ(Wait().kind, Stop::Kind::kSyscall);  // execve's end
    Result<RemoteArea> area = MakeArea(*tracee, kOurArea);
    EXPECT_THAT(area, ::stasis::testing::IsOk());
    processes_.push_back({.image = &image_,
                          .pid = pid_,
                          .pidfd = UniqueFd(static_cast<int>(::syscall(SYS_pidfd_open, pid_, 0))),
                          .proc = *OpenAt(AT_FDCWD, "/proc/" + std::to_string(pid_), O_DIRECTORY),
                          .leader = *std::move(tracee),
                          .area = *area,
                          .remote = {},
                          .others = {}});
    Result<RemoteSyscalls> remote = RemoteSyscalls::Begin(process().leader, area->place());
    EXPECT_THAT(remote, ::stasis::testing::IsOk());
    process().remote.emplace(*std::move(remote));
    proc_ = *OpenAt(AT_FDCWD, "/proc/" + std::to_string(pid_), O_DIRECTORY);
    image_.tree.set_pid(static_cast<std::uint32_t>(pid_));
  }
  FreshProgram(FreshProgram&&) = delete;
  ~FreshProgram() {
    ::kill(pid_, SIGKILL);
    if (!processes_.empty()) {
      process().remote->Abandon();
      process().leader.Forget();
    }
    ::waitpid(pid_, nullptr, __WALL);
  }

  pid_t pid() const { return pid_; }
  RestoredProcess& process() { return processes_.front(); }
  std::vector<RestoredProcess>& processes() { return processes_; }
  /// Lends the process to a list of several.
  RestoredProcess Give() {
    RestoredProcess given = std::move(processes_.front());
    processes_.clear();
    return given;
  }
  void Take(RestoredProcess process) { processes_.push_back(std::move(process)); }
  ProcessImage& image() { return image_; }
  int process_fd() const { return proc_.get(); }

  Stop Wait() {
    return WaitForStop(pid_, std::chrono::steady_clock::now() + std::chrono::seconds(10))
        .value_or(Stop());
  }
  std::string Maps() const {
    return ReadFileAt(AT_FDCWD, "/proc/" + std::to_string(pid_) + "/maps").value_or("");
  }
  std::vector<Vma> Vmas() const {
    const Result<std::string> text = ReadFileAt(proc_.get(), "smaps");
    EXPECT_THAT(text, ::stasis::testing::IsOk());
    return ParseSmaps(text.value_or("")).value_or(std::vector<Vma>());
  }
  /// Memory at `address`, whatever its protection.
  std::string Read(std::uint64_t address, std::size_t size) const {
    std::string bytes(size, '?');
    const auto mem = OpenAt(AT_FDCWD, "/proc/" + std::to_string(pid_) + "/mem", O_RDONLY);
    EXPECT_THAT(ReadMemoryForced(mem->get(), address, std::as_writable_bytes(std::span(bytes))),
                ::stasis::testing::IsOk());
    return bytes;
  }

 private:
  [[noreturn]] static void Execute(int go, uid_t user) {
    char byte = 0;
    if (::read(go, &byte, 1) != 1) ::_exit(1);
    if (user != 0 && ::setresuid(user, user, user) != 0) ::_exit(1);
    ::execl("/bin/true", "true", nullptr);
    ::_exit(1);
  }

  pid_t pid_ = 0;
  UniqueFd proc_;
  ProcessImage image_;
  std::vector<RestoredProcess> processes_;
};

/// Restores the memory of `processes` by their images, none of which is a fork of another.
inline ::stasis::Status RestoreMemory(std::vector<RestoredProcess>& processes,
                                      const CheckpointImages& images, const ImageSource& source,
                                      const MemoryRestorer::OpenFile& open_file,
                                      MemoryProgress& progress) {
  std::vector<const ProcessImage*> all;
  for (const RestoredProcess& process : processes) all.push_back(process.image);
  ASSIGN_OR_RETURN(const std::unique_ptr<MemoryRestorer> restorer,
                   MemoryRestorer::Create(all, images, source, kOurArea, open_file, progress));
  for (RestoredProcess& process : processes) RETURN_IF_ERROR(restorer->Restore(process, nullptr));
  return restorer->Finish();
}

/// The page `text`, filled up with zeros.
inline std::string PageOf(std::string_view text) {
  std::string page(text);
  page.resize(kPage);
  return page;
}

/// Makes mm-PID.img (as a message), pagemap-PID.img and the pages file of a program's image.
class MemoryImage {
 public:
  /// CRIU's numbers for VmaEntry.status.
  enum Status : std::uint32_t {
    kAnonymous = 0x201,
    kPrivateFile = 0x41,
    kSharedFile = 0x81,
    kSharedAnonymous = 0x101,
    kVvar = 0x1201,
    kVdso = 0x209,
    kGuard = 0x10000,
  };

  /// An image with nothing but the vDSO, at `vvar`.
  MemoryImage(FreshProgram& program, std::uint64_t vvar) : program_(program) {
    const Result<LiveVdso> live = FindVdso(program.process());
    EXPECT_THAT(live, ::stasis::testing::IsOk());
    const std::uint64_t vdso = vvar + live->data_bytes();
    Add(vvar, live->data_bytes() / kPage, PROT_READ, kVvar);
    Add(vdso, live->code.size() / kPage, PROT_READ | PROT_EXEC, kVdso);
    Pages(vdso, program.Read(live->code.start, live->code.size()));
    image::MmEntry& mm = program.image().mm;
    mm.set_mm_start_code(kBase);
    mm.set_mm_end_code(kBase + kPage);
    mm.set_mm_start_brk(kBase);
    mm.set_mm_brk(kBase);
    mm.set_mm_start_stack(kBase);
  }

  image::VmaEntry& Add(std::uint64_t start, std::uint64_t pages, int prot,
                       std::uint32_t status = kAnonymous, std::uint32_t flags = 0) {
    const bool file = status == kPrivateFile || status == kSharedFile;
    const bool shared = status == kSharedAnonymous || status == kSharedFile;
    image::VmaEntry vma;
    vma.set_start(start);
    vma.set_end(start + pages * kPage);
    vma.set_pgoff(0);
    vma.set_shmid(0);
    vma.set_prot(static_cast<std::uint32_t>(prot));
    if (status != kGuard) {
      flags |= (file ? 0u : MAP_ANONYMOUS) | (shared ? MAP_SHARED : MAP_PRIVATE);
    }
    vma.set_flags(flags);
    vma.set_status(status);
    vma.set_fd(-1);
    return vmas_[status == kGuard ? ~start : start] = vma;  // guards come last
  }

  void Remove(std::uint64_t start) { vmas_.erase(start); }

  void Pages(std::uint64_t start, const std::string& bytes) { pages_[start] = bytes; }

  /// Pages of shared memory `number`, from `offset` on.
  void SharedPages(std::uint64_t number, std::uint64_t offset, const std::string& bytes) {
    Write(ImageName("pagemap-shmem", number), static_cast<std::uint32_t>(1000 + number),
          {{offset, bytes}});
  }

  /// Restores it. `open_file` opens ids as paths of `paths`.
  ::stasis::Status Restore() {
    Finish();
    return RestoreMemory(program_.processes(), {}, source, OpenFile(), progress);
  }
  void Finish() {
    program_.image().mm.clear_vmas();
    for (const auto& [start, vma] : vmas_) *program_.image().mm.add_vmas() = vma;
    const auto pid = static_cast<std::uint32_t>(program_.pid());
    Write(ImageName("pagemap", pid), pid, pages_);
  }
  std::function<Result<int>(RestoredProcess&, std::uint32_t, int)> OpenFile() {
    return [this](RestoredProcess& process, std::uint32_t id, int flags) -> Result<int> {
      process.remote->ResetArguments();
      ASSIGN_OR_RETURN(const std::uint64_t path, process.remote->Put(paths[id]));
      ASSIGN_OR_RETURN(const std::uint64_t fd,
                       process.remote->Call("open", SYS_openat, AT_FDCWD, path, flags, 0));
      return static_cast<int>(fd);
    };
  }

  MapSource source;
  std::map<std::uint32_t, std::string> paths;
  MemoryProgress progress;

 private:
  void Write(const std::string& name, std::uint32_t id,
             const std::map<std::uint64_t, std::string>& pages) {
    image::PagemapHead head;
    head.set_pages_id(id);
    ImageFileBuilder pagemap("pagemap");
    EXPECT_THAT(pagemap.Add(head), ::stasis::testing::IsOk());
    std::string content;
    for (const auto& [start, bytes] : pages) {
      image::PagemapEntry entry;
      entry.set_vaddr(start);
      entry.set_compat_nr_pages(static_cast<std::uint32_t>(bytes.size() / kPage));
      entry.set_flags(4);
      EXPECT_THAT(pagemap.Add(entry), ::stasis::testing::IsOk());
      content += bytes;
    }
    source.files[name] = pagemap.bytes();
    source.files[ImageName("pages", id)] = content;
  }

  FreshProgram& program_;
  std::map<std::uint64_t, image::VmaEntry> vmas_;
  std::map<std::uint64_t, std::string> pages_;
};

}  // namespace stasis::engine::testing
