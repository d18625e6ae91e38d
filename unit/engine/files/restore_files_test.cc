#include "engine/files/restore_files.h"

#include <dirent.h>
#include <fcntl.h>
#include <linux/kcmp.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/un.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <functional>

#include "engine/base/io.h"
#include "engine/proc/fdinfo.h"
#include "engine/tasks/process_tree.h"
#include "unit/support/child.h"
#include "unit/support/matchers.h"

namespace stasis::engine {
namespace {

using ::stasis::testing::Child;
using ::stasis::testing::IsOk;
using ::stasis::testing::Sleep;
using ::stasis::testing::StatusIs;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::SizeIs;

// Where no program is, and above what the address sanitizer keeps for itself (up to 0x10007fff8000).
constexpr std::uint64_t kAreaAddress = 0x200000000000;

/// No image file beside those that the test made.
class EmptySource : public ImageSource {
 public:
  std::vector<std::string> Names() const override { return {}; }
  Result<std::uint64_t> Size(std::string_view name) const override { return NotFound(name); }
  Status ReadAt(std::string_view name, std::uint64_t, std::span<std::byte>) const override {
    return NotFound(name);
  }
};

std::string ProcPath(pid_t pid) { return "/proc/" + std::to_string(pid); }

std::vector<int> NumbersOf(pid_t pid) {
  std::vector<int> numbers;
  DIR* directory = ::opendir((ProcPath(pid) + "/fd").c_str());
  if (directory == nullptr) return numbers;
  while (const dirent* entry = ::readdir(directory)) {
    if (entry->d_name[0] != '.') numbers.push_back(std::atoi(entry->d_name));
  }
  ::closedir(directory);
  std::ranges::sort(numbers);
  return numbers;
}

std::string LinkOf(pid_t pid, int fd) {
  return ReadLinkAt(AT_FDCWD, ProcPath(pid) + "/fd/" + std::to_string(fd)).value_or("");
}
std::string FdinfoOf(pid_t pid, int fd) {
  return ReadFileAt(AT_FDCWD, ProcPath(pid) + "/fdinfo/" + std::to_string(fd)).value_or("");
}
bool ClosesOnExec(pid_t pid, int fd) {
  const auto info = ParseFdinfo(FdinfoOf(pid, fd));
  return info.ok() && (info->flags & O_CLOEXEC) != 0;
}
bool SameFile(pid_t pid, int fd, pid_t other_pid, int other_fd) {
  return ::syscall(SYS_kcmp, pid, other_pid, KCMP_FILE, fd, other_fd) == 0;
}

/// Processes of the test under restore, with images made by hand.
class RestoreFilesTest : public ::testing::Test {
 protected:
  RestoreFilesTest() { images.processes.reserve(4); }

  /// A process of the images, which has run `prepare` and waits.
  ProcessImage& AddProcess(const std::function<void()>& prepare = [] {}) {
    int ready[2] = {-1, -1};
    EXPECT_EQ(::pipe2(ready, O_CLOEXEC), 0);
    const Child& child = children_.emplace_back([&] {
      prepare();
      ::close(ready[0]);
      ::close(ready[1]);
      return Sleep();
    });
    ::close(ready[1]);
    char byte;
    EXPECT_EQ(::read(ready[0], &byte, 1), 0);  // its end
    ::close(ready[0]);
    ProcessImage& process = images.processes.emplace_back();
    process.tree.set_pid(static_cast<std::uint32_t>(child.pid()));
    return process;
  }

  image::FileEntry& AddFile(image::FdTypes type) {
    image::FileEntry& entry = images.files.emplace_back();
    entry.set_type(type);
    entry.set_id(next_id_++);
    return entry;
  }
  image::FileEntry& AddRegular(const std::string& path, int flags) {
    image::FileEntry& entry = AddFile(image::FD_REG);
    image::RegFileEntry& reg = *entry.mutable_reg();
    reg.set_id(entry.id());
    reg.set_flags(static_cast<std::uint32_t>(flags));
    reg.set_pos(0);
    reg.set_name(path);
    NoOwner(*reg.mutable_fown());
    return entry;
  }
  image::FileEntry& AddEventfd(std::uint64_t counter) {
    image::FileEntry& entry = AddFile(image::FD_EVENTFD);
    image::EventfdFileEntry& eventfd = *entry.mutable_efd();
    eventfd.set_id(entry.id());
    eventfd.set_flags(O_RDWR);
    eventfd.set_counter(counter);
    NoOwner(*eventfd.mutable_fown());
    return entry;
  }
  image::FileEntry& AddPipe(std::uint32_t pipe_id, int flags) {
    image::FileEntry& entry = AddFile(image::FD_PIPE);
    image::PipeEntry& pipe = *entry.mutable_pipe();
    pipe.set_id(entry.id());
    pipe.set_pipe_id(pipe_id);
    pipe.set_flags(static_cast<std::uint32_t>(flags));
    NoOwner(*pipe.mutable_fown());
    return entry;
  }

  image::FileEntry& AddUnix(std::uint32_t inode, std::uint32_t peer) {
    image::FileEntry& entry = AddFile(image::FD_UNIXSK);
    image::UnixSkEntry& socket = *entry.mutable_usk();
    socket.set_id(entry.id());
    socket.set_ino(inode);
    socket.set_peer(peer);
    socket.set_type(SOCK_STREAM);
    socket.set_state(peer != 0 ? 1 : 10);  // TCP_ESTABLISHED, TCP_LISTEN
    socket.set_flags(O_RDWR);
    socket.mutable_opts()->set_so_rcvlowat(1);
    return entry;
  }

  static void Hold(ProcessImage& process, const image::FileEntry& entry, int fd, int flags = 0) {
    image::FdinfoEntry& descriptor = process.descriptors.emplace_back();
    descriptor.set_id(entry.id());
    descriptor.set_type(entry.type());
    descriptor.set_fd(static_cast<std::uint32_t>(fd));
    descriptor.set_flags(static_cast<std::uint32_t>(flags));
  }

  /// Takes the processes and restores the files, up to the descriptor tables.
  Status RestoreAll() {
    std::ranges::sort(images.files, {}, [](const image::FileEntry& entry) {
      return std::pair(entry.type(), entry.id());
    });
    for (std::size_t i = 0; i < images.processes.size(); ++i) {
      ASSIGN_OR_RETURN(RestoredProcess process,
                       TakePlaceholder(children_[i].pid(), images.processes[i], kAreaAddress));
      processes.push_back(std::move(process));
    }
    restorer = MakeFileRestorer(processes.front(), images, source_, Options());
    return restorer->RestoreAll();
  }
  Status Restore() {
    RETURN_IF_ERROR(RestoreAll());
    for (RestoredProcess& process : processes) RETURN_IF_ERROR(restorer->Install(process));
    return restorer->Finish(processes);
  }

  pid_t pid(std::size_t i = 0) const { return children_[i].pid(); }

 private:
  static void NoOwner(image::FownEntry& owner) {
    owner.set_uid(0);
    owner.set_euid(0);
    owner.set_signum(0);
    owner.set_pid_type(0);
    owner.set_pid(0);
  }

  EmptySource source_;
  std::vector<Child> children_;
  std::uint32_t next_id_ = 1;

 protected:
  CheckpointImages images;
  std::vector<RestoredProcess> processes;
  std::unique_ptr<FileRestorer> restorer;
};

TEST_F(RestoreFilesTest, GivesExactlyTheNumbersAndFlagsOfTheImage) {
  ProcessImage& root = AddProcess([] {
    ::dup2(0, 3);
    ::dup2(0, 5);
    ::dup2(0, 77);
  });
  const image::FileEntry& null = AddRegular("/dev/null", O_RDWR);
  Hold(root, null, 1, FD_CLOEXEC);
  Hold(root, null, 2);
  Hold(root, null, 5, FD_CLOEXEC);
  Hold(root, null, 900);
  ASSERT_THAT(Restore(), IsOk());
  EXPECT_THAT(NumbersOf(pid()), ElementsAre(1, 2, 5, 900));
  for (const int fd : {1, 2, 5, 900}) {
    EXPECT_EQ(LinkOf(pid(), fd), "/dev/null");
    EXPECT_EQ(ClosesOnExec(pid(), fd), fd == 1 || fd == 5) << fd;
    EXPECT_TRUE(SameFile(pid(), fd, pid(), 1)) << fd;
  }
}

TEST_F(RestoreFilesTest, ManyDescriptorsKeepTheirPlaces) {
  ProcessImage& root = AddProcess();
  std::vector<int> numbers;  // crowded, then with gaps: some move, some stay, some are overwritten
  for (int fd = 0; fd < 260; ++fd) numbers.push_back(fd < 20 ? fd : 20 + (fd - 20) * (fd % 3 + 1));
  std::ranges::sort(numbers);
  numbers.erase(std::unique(numbers.begin(), numbers.end()), numbers.end());
  for (const int fd : numbers) {
    const image::FileEntry entry = AddEventfd(static_cast<std::uint64_t>(fd) + 1);
    Hold(root, entry, fd, fd % 2 == 0 ? FD_CLOEXEC : 0);
  }
  ASSERT_THAT(Restore(), IsOk());
  EXPECT_EQ(NumbersOf(pid()), numbers);
  for (const int fd : numbers) {
    const auto eventfd = ParseEventfd(FdinfoOf(pid(), fd));
    ASSERT_THAT(eventfd, IsOk());
    EXPECT_EQ(eventfd->counter, static_cast<std::uint64_t>(fd) + 1) << fd;
    EXPECT_EQ(ClosesOnExec(pid(), fd), fd % 2 == 0) << fd;
  }
}

TEST_F(RestoreFilesTest, AProcessWithoutDescriptorsHasNone) {
  AddProcess();
  ASSERT_THAT(Restore(), IsOk());
  EXPECT_THAT(NumbersOf(pid()), IsEmpty());
}

TEST_F(RestoreFilesTest, ProcessesShareWhatTheyShared) {
  ProcessImage& root = AddProcess();
  ProcessImage& child = AddProcess();
  const image::FileEntry common = AddRegular("/dev/null", O_RDWR);
  const image::FileEntry own = AddRegular("/dev/null", O_RDWR);
  Hold(root, common, 0);
  Hold(root, own, 1);
  Hold(child, common, 4);
  ASSERT_THAT(Restore(), IsOk());
  EXPECT_THAT(NumbersOf(pid(1)), ElementsAre(4));
  EXPECT_TRUE(SameFile(pid(0), 0, pid(1), 4));
  EXPECT_FALSE(SameFile(pid(0), 1, pid(1), 4));
}

TEST_F(RestoreFilesTest, ThePipesOfAStarterAreTheNewOnes) {
  int out[2];
  ASSERT_EQ(::pipe2(out, O_CLOEXEC), 0);
  const UniqueFd reader(out[0]), writer(out[1]);
  ProcessImage& root = AddProcess([&] { ::dup2(writer.get(), 1); });
  // As a runtime tells it, the start's descriptor 1; the program has moved it since.
  images.stdio = {"/dev/null", "pipe:[4711]", "pipe:[4712]"};
  Hold(root, AddPipe(4711, O_WRONLY), 9);
  // Both ends are the tree's: no starter has one, though it is descriptor 0.
  Hold(root, AddPipe(4713, O_RDONLY), 0);
  Hold(root, AddPipe(4713, O_WRONLY), 3);
  std::ranges::sort(root.descriptors, {}, &image::FdinfoEntry::fd);
  ASSERT_THAT(Restore(), IsOk());
  EXPECT_EQ(LinkOf(pid(), 9), LinkOf(::getpid(), writer.get()));
  EXPECT_EQ(LinkOf(pid(), 0), LinkOf(pid(), 3));
  EXPECT_NE(LinkOf(pid(), 0), LinkOf(::getpid(), 0));
}

TEST_F(RestoreFilesTest, APipeOfAStarterNeedsADescriptorInItsPlace) {
  ProcessImage& root = AddProcess([] { ::close(1); });
  Hold(root, AddPipe(4711, O_WRONLY), 1);
  EXPECT_THAT(RestoreAll(), StatusIs(StatusCode::kFailedPrecondition, HasSubstr("pipe:[4711]")));
}

TEST_F(RestoreFilesTest, OpensWithTheRightsOfTheProcess) {
  char path[] = "/tmp/stasis-files-XXXXXX";
  const UniqueFd ours(::mkstemp(path));  // mode 0600, root's
  ProcessImage& root = AddProcess([] { EXPECT_EQ(::setresuid(65534, 65534, 65534), 0); });
  Hold(root, AddRegular(path, O_RDONLY), 3);
  EXPECT_THAT(RestoreAll(), StatusIs(StatusCode::kPermissionDenied, HasSubstr(path)));
  ::unlink(path);
}

TEST_F(RestoreFilesTest, ALinkDoesNotLeaveTheRootOfTheProcess) {
  char directory[] = "/tmp/stasis-files-XXXXXX";
  ASSERT_NE(::mkdtemp(directory), nullptr);
  const std::string base = directory;
  ASSERT_EQ(::symlink("/../../etc", (base + "/link").c_str()), 0);
  ProcessImage& root = AddProcess([&] { EXPECT_EQ(::chroot(base.c_str()), 0); });
  Hold(root, AddRegular("/link/passwd", O_RDONLY), 3);
  EXPECT_THAT(RestoreAll(), StatusIs(StatusCode::kNotFound, HasSubstr("/link/passwd")));
  ::unlink((base + "/link").c_str());
  ::rmdir(directory);
}

TEST_F(RestoreFilesTest, BindsASocketInTheFileSystemOfTheProcess) {
  char directory[] = "/tmp/stasis-files-XXXXXX";
  ASSERT_NE(::mkdtemp(directory), nullptr);
  const std::string base = directory;
  ProcessImage& root = AddProcess([&] { EXPECT_EQ(::chroot(base.c_str()), 0); });
  image::FileEntry& listener = AddUnix(11, 0);
  listener.mutable_usk()->set_backlog(1);
  listener.mutable_usk()->set_name(std::string("/socket\0", 8));
  Hold(root, listener, 3);
  ASSERT_THAT(Restore(), IsOk());
  EXPECT_THAT(NumbersOf(pid()), ElementsAre(3));  // nothing is left of the way there
  const UniqueFd client(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
  sockaddr_un address = {.sun_family = AF_UNIX, .sun_path = {}};
  base.copy(address.sun_path, sizeof(address.sun_path));
  std::strcat(address.sun_path, "/socket");
  EXPECT_EQ(::connect(client.get(), reinterpret_cast<sockaddr*>(&address), sizeof(address)), 0);
  ::unlink(address.sun_path);
  ::rmdir(directory);
}

TEST_F(RestoreFilesTest, ASocketToAStarterIsTheNewOne) {
  int pair[2];
  ASSERT_EQ(::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair), 0);
  const UniqueFd theirs(pair[0]), given(pair[1]);
  ProcessImage& root = AddProcess([&] {
    ::dup2(given.get(), 0);
    ::dup2(given.get(), 1);
  });
  images.stdio = {"socket:[11]", "socket:[21]", ""};
  Hold(root, AddUnix(11, 12), 0);
  Hold(root, AddUnix(21, 22), 1);  // both ends of this one are the tree's
  Hold(root, AddUnix(22, 21), 2);
  ASSERT_THAT(Restore(), IsOk());
  EXPECT_TRUE(SameFile(pid(), 0, ::getpid(), given.get()));
  EXPECT_FALSE(SameFile(pid(), 1, ::getpid(), given.get()));
}

TEST_F(RestoreFilesTest, RaisesTheSoftLimitAndNotTheHardOne) {
  const auto limited = [] {
    const rlimit limit = {.rlim_cur = 10, .rlim_max = 100};
    EXPECT_EQ(::setrlimit(RLIMIT_NOFILE, &limit), 0);
  };
  ProcessImage& root = AddProcess(limited);
  ProcessImage& child = AddProcess(limited);
  const image::FileEntry null = AddRegular("/dev/null", O_RDWR);
  Hold(root, null, 99);
  Hold(child, null, 100);
  ASSERT_THAT(RestoreAll(), IsOk());
  ASSERT_THAT(restorer->Install(processes[0]), IsOk());
  EXPECT_THAT(NumbersOf(pid(0)), ElementsAre(99));
  EXPECT_THAT(restorer->Install(processes[1]),
              StatusIs(StatusCode::kFailedPrecondition, HasSubstr("descriptor 100")));
}

TEST_F(RestoreFilesTest, EpollWatchesTheNumbersOfItsHolder) {
  ProcessImage& root = AddProcess();
  const image::FileEntry watched = AddEventfd(1);
  image::FileEntry epoll = AddFile(image::FD_EVENTPOLL);
  epoll.mutable_epfd()->set_id(epoll.id());
  epoll.mutable_epfd()->set_flags(O_RDWR);
  *epoll.mutable_epfd()->mutable_fown() = watched.efd().fown();
  image::EventpollTfdEntry& target = *epoll.mutable_epfd()->add_tfd();
  target.set_id(epoll.id());
  target.set_tfd(8);
  target.set_events(EPOLLIN);
  target.set_data(0x1234567890);
  images.files.back() = epoll;
  Hold(root, epoll, 4);
  Hold(root, watched, 7);
  Hold(root, watched, 8);
  ASSERT_THAT(Restore(), IsOk());
  const auto targets = ParseEpollTargets(FdinfoOf(pid(), 4));
  ASSERT_THAT(targets, IsOk());
  ASSERT_THAT(*targets, SizeIs(1));
  EXPECT_EQ((*targets)[0].fd, 8);
  EXPECT_EQ((*targets)[0].data, 0x1234567890u);
}

TEST_F(RestoreFilesTest, TheReceiverOfSignalsIsOneOfTheTreeOrNoted) {
  ProcessImage& root = AddProcess();
  const auto owned_by = [&](pid_t owner) {
    image::FileEntry& pipe = AddPipe(4711, O_RDONLY);
    pipe.mutable_pipe()->mutable_fown()->set_pid_type(F_OWNER_PID);
    pipe.mutable_pipe()->mutable_fown()->set_pid(static_cast<std::uint32_t>(owner));
    pipe.mutable_pipe()->mutable_fown()->set_signum(SIGUSR2);
    return pipe;
  };
  Hold(root, owned_by(pid()), 3);
  Hold(root, owned_by(4194303), 4);
  Hold(root, AddPipe(4711, O_WRONLY), 5);
  ASSERT_THAT(Restore(), IsOk());
  const UniqueFd fd(static_cast<int>(::syscall(SYS_pidfd_getfd, processes[0].pidfd.get(), 3, 0)));
  f_owner_ex owner = {};
  ASSERT_EQ(::fcntl(fd.get(), F_GETOWN_EX, &owner), 0);
  EXPECT_EQ(owner.type, F_OWNER_PID);
  EXPECT_EQ(owner.pid, pid());
  EXPECT_EQ(::fcntl(fd.get(), F_GETSIG), SIGUSR2);
  EXPECT_THAT(restorer->notes(), ElementsAre(AllOf(HasSubstr("fd 4"), HasSubstr("4194303"))));
}

TEST_F(RestoreFilesTest, AKindThatNobodyRestoresStopsIt) {
  ProcessImage& root = AddProcess();
  Hold(root, AddFile(image::FD_EXT), 6);
  EXPECT_THAT(RestoreAll(), StatusIs(StatusCode::kUnimplemented, HasSubstr("fd 6")));
}

TEST_F(RestoreFilesTest, OpensAFileInTheProcessItself) {
  AddProcess();
  ASSERT_THAT(Restore(), IsOk());
  const auto number = OpenInProcess(processes[0], "/dev/zero", O_RDONLY);
  ASSERT_THAT(number, IsOk());
  EXPECT_EQ(LinkOf(pid(), *number), "/dev/zero");
  EXPECT_THAT(OpenInProcess(processes[0], "dev/zero", O_RDONLY),
              StatusIs(StatusCode::kInvalidArgument));
}

}  // namespace
}  // namespace stasis::engine
