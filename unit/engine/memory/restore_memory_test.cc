// Memory made from images on the running kernel, looked at through /proc.
#include "engine/memory/restore_memory.h"

#include <dlfcn.h>
#include <sys/resource.h>
#include <sys/stat.h>

#include <cstdio>

#include "unit/engine/memory/restore_fixture.h"

namespace stasis::engine {
namespace {

using ::stasis::testing::IsOk;
using ::stasis::testing::StatusIs;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::Not;
using namespace testing;  // NOLINT: this folder's fixture

constexpr std::uint64_t kVvar = 0x7ffd'0000'0000;
constexpr int kReadWrite = PROT_READ | PROT_WRITE;

// The areas of `program` between kBase and `end`, "start-offset prot" in pages from kBase.
std::vector<std::string> Areas(const FreshProgram& program,
                               std::uint64_t end = kBase + (1u << 30)) {
  std::vector<std::string> lines;
  for (const Vma& vma : program.Vmas()) {
    if (vma.start < kBase || vma.start >= end) continue;
    char line[64];
    std::snprintf(line, sizeof(line), "%lu-%lu %c%c%c%c", (vma.start - kBase) / kPage,
                  (vma.end - kBase) / kPage, vma.prot & PROT_READ ? 'r' : '-',
                  vma.prot & PROT_WRITE ? 'w' : '-', vma.prot & PROT_EXEC ? 'x' : '-',
                  vma.shared ? 's' : 'p');
    lines.emplace_back(line);
  }
  return lines;
}

std::string FlagsAt(const FreshProgram& program, std::uint64_t start) {
  for (const Vma& vma : program.Vmas()) {
    if (vma.start != start) continue;
    const std::string letters(vma.flags.letters());
    std::string flags;
    for (std::size_t i = 0; i < letters.size(); i += 2) flags += letters.substr(i, 2) + " ";
    return flags;
  }
  return "no such area";
}

TEST(RestoreMemoryTest, ContentComesBackWhateverTheProtection) {
  FreshProgram program;
  MemoryImage image(program, kVvar);
  image.Add(kBase, 4, kReadWrite);
  image.Add(kBase + 4 * kPage, 1, PROT_READ);
  image.Add(kBase + 5 * kPage, 1, PROT_READ | PROT_EXEC);
  image.Add(kBase + 6 * kPage, 2, PROT_NONE);
  image.Pages(kBase, PageOf("first"));
  // One run over three areas, as CRIU merges them.
  image.Pages(kBase + 3 * kPage, PageOf("fourth") + PageOf("constant") + PageOf("code"));
  image.Pages(kBase + 7 * kPage, PageOf("hidden"));
  ASSERT_THAT(image.Restore(), IsOk());

  EXPECT_THAT(Areas(program), ElementsAre("0-4 rw-p", "4-5 r--p", "5-6 r-xp", "6-8 ---p"));
  EXPECT_EQ(program.Read(kBase, 2 * kPage), PageOf("first") + PageOf(""));
  EXPECT_EQ(program.Read(kBase + 3 * kPage, 3 * kPage),
            PageOf("fourth") + PageOf("constant") + PageOf("code"));
  EXPECT_EQ(program.Read(kBase + 6 * kPage, 2 * kPage), PageOf("") + PageOf("hidden"));
}

TEST(RestoreMemoryTest, NothingOfTheOldProgramIsLeft) {
  FreshProgram program;
  MemoryImage image(program, kVvar);
  image.Add(kBase, 1, kReadWrite);
  ASSERT_THAT(image.Restore(), IsOk());
  std::vector<std::uint64_t> starts;
  for (const Vma& vma : program.Vmas()) {
    if (vma.path != "[vvar]" && vma.path != "[vvar_vclock]" && vma.path != "[vsyscall]") {
      starts.push_back(vma.start);
    }
  }
  const std::uint64_t vdso = FindVdso(program.process())->code.start;
  EXPECT_THAT(starts, ElementsAre(kOurArea, kOurArea + kPage, kBase, vdso));
}

TEST(RestoreMemoryTest, MuchMemoryOfAllProtectionsIsFilledOnce) {
  constexpr std::uint64_t kRun = 700;  // pages; a batch's end lies within most runs
  FreshProgram program;
  MemoryImage image(program, kVvar);
  std::uint64_t next = 0;
  std::vector<std::string> runs;
  for (std::uint64_t i = 0; i < 8; ++i) {
    const std::uint64_t start = kBase + 2 * i * kRun * kPage;
    std::string& bytes = runs.emplace_back();
    for (std::uint64_t page = 0; page < kRun; ++page) bytes += PageOf(std::to_string(next++));
    image.Add(start, kRun, i % 3 == 2 ? PROT_READ : PROT_READ | PROT_WRITE);
    image.Pages(start, bytes);
  }
  ASSERT_THAT(image.Restore(), IsOk());
  for (std::uint64_t i = 0; i < runs.size(); ++i) {
    EXPECT_TRUE(program.Read(kBase + 2 * i * kRun * kPage, runs[i].size()) == runs[i]) << i;
  }
  const Result<LiveVdso> vdso = FindVdso(program.process());
  ASSERT_THAT(vdso, IsOk());
  EXPECT_EQ(image.progress.pages, next + vdso->code.size() / kPage);
}

TEST(RestoreMemoryTest, ManyScatteredPagesKeepTheirPlaces) {
  FreshProgram program;
  MemoryImage image(program, kVvar);
  constexpr std::uint64_t kCount = 5000;  // more runs than one call takes, more bytes than a batch
  image.Add(kBase, 2 * kCount, kReadWrite);
  for (std::uint64_t i = 0; i < kCount; ++i) {
    image.Pages(kBase + 2 * i * kPage, PageOf(std::to_string(i)));
  }
  std::uint64_t reported = 0;
  image.progress.report = [&](std::uint64_t pages) { reported = pages; };
  ASSERT_THAT(image.Restore(), IsOk());
  EXPECT_GE(reported, kCount);
  EXPECT_EQ(reported, image.progress.pages);
  for (std::uint64_t i = 0; i < kCount; ++i) {
    ASSERT_EQ(program.Read(kBase + 2 * i * kPage, 2 * kPage),
              PageOf(std::to_string(i)) + PageOf(""));
  }
}

// Code that asks the vDSO at `function` for the time in seconds, and exits with 7 when it gets one.
std::string AskTheTime(std::uint64_t function) {
  std::string code = "\x31\xff\x48\xb8";  // xor edi, edi; movabs rax, function
  code.append(reinterpret_cast<const char*>(&function), sizeof(function));
  code += "\xff\xd0";  // call rax
  code += "\x3d";      // cmp eax, 1600000000 (September 2020)
  const std::uint32_t past = 1'600'000'000;
  code.append(reinterpret_cast<const char*>(&past), sizeof(past));
  code += "\x0f\x97\xc0\x0f\xb6\xf8";                      // seta al; movzx edi, al
  code += "\x6b\xff\x07";                                  // imul edi, edi, 7
  code += std::string("\xb8\xe7\x00\x00\x00\x0f\x05", 7);  // mov eax, SYS_exit_group; syscall
  return PageOf(code);
}

// Lets `program` run from `address` to its end, and gives its exit code.
int RunFrom(FreshProgram& program, std::uint64_t address, std::uint64_t stack) {
  arch::GeneralRegisters registers = arch::ReadGeneral(program.pid()).value();
  registers.rip = address;
  registers.rsp = stack;
  registers.orig_rax = ~0ull;
  program.process().remote->Abandon();
  EXPECT_THAT(arch::WriteGeneral(program.pid(), registers), IsOk());
  EXPECT_THAT(program.process().leader.Continue(), IsOk());
  const Stop stop = program.Wait();
  return stop.kind == Stop::Kind::kExited && WIFEXITED(stop.status) ? WEXITSTATUS(stop.status) : -1;
}

// The vDSO's time(2), from the start of the vDSO.
std::uint64_t OffsetOfTime() {
  void* const vdso = ::dlopen("linux-vdso.so.1", RTLD_LAZY | RTLD_NOLOAD);
  void* const time = vdso == nullptr ? nullptr : ::dlsym(vdso, "__vdso_time");
  Dl_info info = {};
  if (time == nullptr || ::dladdr(time, &info) == 0) return 0;
  return reinterpret_cast<std::uint64_t>(time) - reinterpret_cast<std::uint64_t>(info.dli_fbase);
}

TEST(RestoreMemoryTest, TheVdsoTellsTheTimeAtItsOldPlace) {
  const std::uint64_t time = OffsetOfTime();
  if (time == 0) GTEST_SKIP() << "this vDSO has no __vdso_time";
  FreshProgram program;
  MemoryImage image(program, kVvar);
  const std::uint64_t vdso = kVvar + FindVdso(program.process())->data_bytes();
  image.Add(kBase, 1, PROT_READ | PROT_EXEC);
  image.Add(kBase + kPage, 4, kReadWrite);
  image.Pages(kBase, AskTheTime(vdso + time));
  ASSERT_THAT(image.Restore(), IsOk());
  EXPECT_EQ(RunFrom(program, kBase, kBase + 5 * kPage), 7);
}

TEST(RestoreMemoryTest, TheVdsoMovesByLessThanItsSize) {
  const std::uint64_t time = OffsetOfTime();
  for (const std::int64_t pages : {-1, 1, 0}) {
    FreshProgram program;
    const LiveVdso live = *FindVdso(program.process());
    const std::uint64_t vvar = live.whole().start + static_cast<std::uint64_t>(pages) * kPage;
    MemoryImage image(program, vvar);
    image.Add(kBase, 1, PROT_READ | PROT_EXEC);
    image.Add(kBase + kPage, 4, kReadWrite);
    image.Pages(kBase, AskTheTime(vvar + live.data_bytes() + time));
    ASSERT_THAT(image.Restore(), IsOk());
    EXPECT_EQ(FindVdso(program.process())->whole().start, vvar);
    if (time == 0) continue;
    EXPECT_EQ(RunFrom(program, kBase, kBase + 5 * kPage), 7);
  }
}

// As another kernel's: a page more of data and of code, and at `time` something that ends who runs it.
void PutOtherVdso(FreshProgram& program, MemoryImage& image, std::uint64_t time) {
  const LiveVdso live = *FindVdso(program.process());
  std::string other = program.Read(live.code.start, live.code.size()) + PageOf("");
  other.replace(time, 4, "\xcc\xcc\xcc\xcc");  // int3
  image.Add(kVvar - kPage, live.data_bytes() / kPage + 1, PROT_READ, MemoryImage::kVvar);
  image.Remove(kVvar);
  const std::uint64_t vdso = kVvar + live.data_bytes();
  image.Add(vdso, other.size() / kPage, PROT_READ | PROT_EXEC, MemoryImage::kVdso);
  image.Pages(vdso, other);
}

TEST(RestoreMemoryTest, TheVdsoOfAnotherKernelLeadsToOurs) {
  const std::uint64_t time = OffsetOfTime();
  if (time == 0) GTEST_SKIP() << "this vDSO has no __vdso_time";
  FreshProgram program;
  MemoryImage image(program, kVvar);
  PutOtherVdso(program, image, time);
  const LiveVdso before = *FindVdso(program.process());
  const std::uint64_t vdso = kVvar + before.data_bytes();
  // What lies where ours is now makes it move.
  image.Add(before.whole().start, before.whole().size() / kPage, kReadWrite);
  image.Add(kBase, 1, PROT_READ | PROT_EXEC);
  image.Add(kBase + kPage, 4, kReadWrite);
  image.Pages(kBase, AskTheTime(vdso + time));
  ASSERT_THAT(image.Restore(), IsOk());
  const LiveVdso after = *FindVdso(program.process());
  EXPECT_FALSE(after.whole().Overlaps(before.whole()));
  EXPECT_EQ(after.whole().size(), before.whole().size());
  EXPECT_EQ(RunFrom(program, kBase, kBase + 5 * kPage), 7);
}

TEST(RestoreMemoryTest, NobodyMayStandInTheVdsoOfAnotherKernel) {
  for (const bool in_handler : {false, true}) {
    FreshProgram program;
    MemoryImage image(program, kVvar);
    PutOtherVdso(program, image, 2000);
    arch::Registers registers = arch::Read(program.pid()).value();
    registers.general.rip = kVvar + FindVdso(program.process())->data_bytes() + 2000;
    const std::vector<std::byte> frame = arch::SignalFrame(registers, 0, kBase + 256);
    image::UserX86RegsEntry& thread =
        *program.image().threads.emplace_back().core.mutable_thread_info()->mutable_gpregs();
    thread.set_ip(in_handler ? kBase : registers.general.rip);
    thread.set_sp(kBase + 128);
    image.Add(kBase, 4, kReadWrite);
    image.Pages(kBase, std::string(256, '\0') +
                           std::string(reinterpret_cast<const char*>(frame.data()), frame.size()) +
                           std::string(4 * kPage - 256 - frame.size(), '\0'));
    const std::string before = program.Maps();
    EXPECT_THAT(image.Restore(),
                StatusIs(StatusCode::kFailedPrecondition, HasSubstr("another kernel")));
    EXPECT_EQ(program.Maps(), before);
  }
}

class FileMemoryTest : public ::testing::Test {
 protected:
  FileMemoryTest() {
    char name[] = "/tmp/stasis-memory-XXXXXX";
    file_ = UniqueFd(::mkstemp(name));
    path_ = name;
    EXPECT_THAT(WriteAll(file_.get(), PageOf("one") + PageOf("two") + PageOf("three")), IsOk());
  }
  ~FileMemoryTest() override { ::unlink(path_.c_str()); }

  UniqueFd file_;
  std::string path_;
};

TEST_F(FileMemoryTest, APrivateMappingHasTheFileButForPagesThatWereWritten) {
  FreshProgram program;
  MemoryImage image(program, kVvar);
  image.paths[5] = path_;
  image.Add(kBase, 1, PROT_READ, MemoryImage::kPrivateFile).set_shmid(5);
  image::VmaEntry& written = image.Add(kBase + kPage, 2, kReadWrite, MemoryImage::kPrivateFile);
  written.set_shmid(5);
  written.set_pgoff(kPage);
  image.Pages(kBase + kPage, PageOf("mine"));
  ASSERT_THAT(image.Restore(), IsOk());
  EXPECT_EQ(program.Read(kBase, 3 * kPage), PageOf("one") + PageOf("mine") + PageOf("three"));
  EXPECT_THAT(program.Maps(), HasSubstr(path_));
  std::string disk(kPage, 0);
  ASSERT_THAT(ReadExactAt(file_.get(), std::as_writable_bytes(std::span(disk)), kPage), IsOk());
  EXPECT_EQ(disk, PageOf("two"));
}

TEST_F(FileMemoryTest, ASharedMappingWritesToItsFile) {
  FreshProgram program;
  MemoryImage image(program, kVvar);
  image.paths[5] = path_;
  image::VmaEntry& shared = image.Add(kBase, 3, kReadWrite, MemoryImage::kSharedFile);
  shared.set_shmid(5);
  shared.set_fdflags(O_RDWR | O_TRUNC | O_CREAT);  // hostile: only the access mode counts
  ASSERT_THAT(image.Restore(), IsOk());
  ASSERT_THAT(WriteMemory(program.pid(), kBase, std::as_bytes(std::span("new", 3))), IsOk());
  std::string disk(3 * kPage, 0);
  ASSERT_THAT(ReadExactAt(file_.get(), std::as_writable_bytes(std::span(disk)), 0), IsOk());
  EXPECT_EQ(disk, PageOf("new") + PageOf("two") + PageOf("three"));
  EXPECT_THAT(Areas(program), ElementsAre("0-3 rw-s"));
}

TEST_F(FileMemoryTest, ALibrarysAreasOpenItsFileOnceAndLeaveNoDescriptor) {
  FreshProgram program;
  MemoryImage image(program, kVvar);
  image.paths[5] = path_;
  for (std::uint64_t i = 0; i < 3; ++i) {
    image::VmaEntry& vma =
        image.Add(kBase + i * kPage, 1, i == 1 ? PROT_READ | PROT_EXEC : PROT_READ,
                  MemoryImage::kPrivateFile);
    vma.set_shmid(5);
    vma.set_pgoff(i * kPage);
  }
  const std::uint64_t lowest = *program.process().remote->Call("dup", SYS_dup, 0);
  int opened = 0;
  image.Finish();
  const auto open = image.OpenFile();
  ASSERT_THAT(RestoreMemory(
                  program.processes(), {}, image.source,
                  [&](RestoredProcess& process, std::uint32_t id, int flags) {
                    ++opened;
                    return open(process, id, flags);
                  },
                  image.progress),
              IsOk());
  EXPECT_EQ(opened, 1);
  EXPECT_EQ(*program.process().remote->Call("dup", SYS_dup, 0), lowest + 1);
}

TEST(RestoreMemoryTest, TheHeapGrowsFromWhereItWas) {
  FreshProgram program;
  MemoryImage image(program, kVvar);
  image.Add(kBase, 2, kReadWrite);
  image.Pages(kBase, PageOf("heap"));
  image::MmEntry& mm = program.image().mm;
  mm.set_mm_start_data(0);  // a program without data
  mm.set_mm_brk(kBase + 2 * kPage);
  ASSERT_THAT(image.Restore(), IsOk());
  RemoteSyscalls& remote = *program.process().remote;
  EXPECT_EQ(*remote.Call("brk", SYS_brk, 0), kBase + 2 * kPage);
  EXPECT_EQ(*remote.Call("brk", SYS_brk, kBase + 9 * kPage), kBase + 9 * kPage);
  EXPECT_THAT(Areas(program), ElementsAre("0-9 rw-p"));
  EXPECT_THAT(program.Maps(), HasSubstr("[heap]"));
}

TEST(RestoreMemoryTest, ArgumentsAndAuxvAreWhatTheImageSays) {
  FreshProgram program;
  MemoryImage image(program, kVvar);
  image.Add(kBase, 1, kReadWrite, MemoryImage::kAnonymous, MAP_GROWSDOWN);
  image.Pages(kBase, PageOf("server -p 80"));
  image::MmEntry& mm = program.image().mm;
  mm.set_mm_arg_start(kBase);
  mm.set_mm_arg_end(kBase + 12);
  for (const std::uint64_t word : {6ul, 4096ul, 16ul, 0x1234ul}) mm.add_mm_saved_auxv(word);
  ASSERT_THAT(image.Restore(), IsOk());
  EXPECT_EQ(*ReadFileAt(program.process_fd(), "cmdline"), "server -p 80");
  const std::string auxv = *ReadFileAt(program.process_fd(), "auxv");
  const std::uint64_t wanted[] = {6, 4096, 16, 0x1234, 0, 0};
  EXPECT_EQ(auxv, std::string(reinterpret_cast<const char*>(wanted), sizeof(wanted)));
  EXPECT_THAT(program.Maps(), HasSubstr("[stack]"));
  EXPECT_THAT(FlagsAt(program, kBase), HasSubstr("gd "));
}

TEST(RestoreMemoryTest, AdviceLocksAndGuardsAreBack) {
  FreshProgram program;
  MemoryImage image(program, kVvar);
  image.Add(kBase, 4, kReadWrite).set_madv(1ull << MADV_DONTFORK | 1ull << MADV_DONTDUMP);
  image.Add(kBase + 8 * kPage, 2, kReadWrite, MemoryImage::kAnonymous, MAP_LOCKED);
  image.Add(kBase + 16 * kPage, 1, PROT_NONE, MemoryImage::kAnonymous, MAP_LOCKED | MAP_NORESERVE);
  image.Add(kBase + kPage, 1, PROT_NONE, MemoryImage::kGuard);
  image.Pages(kBase, PageOf("before"));
  image.Pages(kBase + 2 * kPage, PageOf("behind"));
  const auto status = image.Restore();
  if (status.code() == StatusCode::kFailedPrecondition)
    GTEST_SKIP() << "no guard pages before Linux 6.13";
  ASSERT_THAT(status, IsOk());
  EXPECT_THAT(FlagsAt(program, kBase), ::testing::AllOf(HasSubstr("dc "), HasSubstr("dd ")));
  EXPECT_THAT(FlagsAt(program, kBase + 8 * kPage), HasSubstr("lo "));
  EXPECT_THAT(FlagsAt(program, kBase + 16 * kPage), HasSubstr("nr "));
  EXPECT_THAT(image.progress.notes, IsEmpty());
  std::byte byte;
  EXPECT_THAT(ReadMemory(program.pid(), kBase + 2 * kPage, std::span(&byte, 1)), IsOk());
  EXPECT_THAT(ReadMemory(program.pid(), kBase + kPage, std::span(&byte, 1)), Not(IsOk()));
}

TEST(RestoreMemoryTest, ALockOverTheLimitIsNoted) {
  constexpr uid_t kNobody = 65534;
  FreshProgram program(kNobody);
  MemoryImage image(program, kVvar);
  RemoteSyscalls& remote = *program.process().remote;
  const std::uint64_t limit = *remote.PutValue(rlimit{kPage, kPage});
  ASSERT_THAT(remote.Call("setrlimit", SYS_setrlimit, RLIMIT_MEMLOCK, limit), IsOk());
  image.Add(kBase, 4, kReadWrite, MemoryImage::kAnonymous, MAP_LOCKED);
  ASSERT_THAT(image.Restore(), IsOk());
  EXPECT_THAT(image.progress.notes, ElementsAre(HasSubstr("16384 bytes are not locked")));
}

}  // namespace
}  // namespace stasis::engine
