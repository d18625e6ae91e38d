#include "archive/rootfs_diff.h"

#include <absl/cleanup/cleanup.h>
#include <fcntl.h>
#include <sys/mount.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/un.h>
#include <sys/xattr.h>

#include <cstdlib>

#include "engine/base/io.h"
#include "unit/archive/archives.h"

namespace stasis::archive {
namespace {

using stasis::testing::IsOk;
using stasis::testing::StatusIs;
using stasis::testing::SyscallSucceeds;
using ::testing::Contains;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

void Shell(const std::string& folder, const std::string& script) {
  ASSERT_EQ(std::system(("set -e; cd " + folder + "; " + script).c_str()), 0) << script;
}

/// What `find` sees of a tree: type, mode, owner, name; of all but folders size, link, time.
std::string Listing(const std::string& folder) {
  const std::string out = folder + ".listing";
  Shell(folder,
        "find . -mindepth 1 \\( -type d -printf '%y %m %U:%G %P\\n' -o "
        "-printf '%y %m %U:%G %s %l %n %T@ %P\\n' \\) | LC_ALL=C sort >" +
            out);
  return Slurp(out);
}

/// A container's root as a runtime makes it: an overlay, with both layers on a tmpfs.
class Overlay {
 public:
  explicit Overlay(const std::string& lower_script) {
    EXPECT_THAT(::mount("stasis-test", folder_.path().c_str(), "tmpfs", 0, "size=64m"),
                SyscallSucceeds());
    Shell(folder_.path(), "mkdir lower upper work merged");
    Shell(folder_ / "lower", lower_script + "; find . -exec touch -h -d @1000 {} +");
    const std::string options = "lowerdir=" + (folder_ / "lower") +
                                ",upperdir=" + (folder_ / "upper") +
                                ",workdir=" + (folder_ / "work");
    EXPECT_THAT(::mount("overlay", root().c_str(), "overlay", 0, options.c_str()),
                SyscallSucceeds());
  }
  Overlay(const Overlay&) = delete;
  Overlay& operator=(const Overlay&) = delete;
  ~Overlay() {
    ::umount2(root().c_str(), MNT_DETACH);
    ::umount2(folder_.path().c_str(), MNT_DETACH);
  }

  std::string root() const { return folder_ / "merged"; }
  std::string upper() const { return folder_ / "upper"; }

 private:
  TempFolder folder_;
};

UniqueFd OpenFolder(const std::string& path) {
  return UniqueFd(::open(path.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
}

Result<RootfsDiffReport> WriteDelta(const std::string& upper, const std::string& archive,
                                    std::vector<std::string> leave_out = {}) {
  ASSIGN_OR_RETURN(const auto writer, ArchiveWriter::Create(archive));
  ASSIGN_OR_RETURN(const auto stream, writer->OpenMember(kRootfsDiffName));
  const UniqueFd fd = OpenFolder(upper);
  ASSIGN_OR_RETURN(RootfsDiffReport report,
                   WriteRootfsDiff({.upper_fd = fd.get(), .leave_out = leave_out}, *stream));
  RETURN_IF_ERROR(writer->Commit({}, {}));
  return report;
}

Result<RootfsDiffReport> ApplyDelta(const std::string& archive, const std::string& root,
                                    RootfsApplyRequest request = {}) {
  ASSIGN_OR_RETURN(const auto opened, Archive::Open(archive));
  const UniqueFd fd = OpenFolder(root);
  request.root_fd = fd.get();
  return ApplyRootfsDiff(request, *opened);
}

/// Applies a layer of hand-made entries to `root`.
Result<RootfsDiffReport> ApplyLayer(const std::string& layer, const std::string& root,
                                    RootfsApplyRequest request = {}) {
  const TempFolder folder;
  Spill(folder / "a.tar", TarMember(kRootfsDiffName, layer) + TarEnd());
  return ApplyDelta(folder / "a.tar", root, request);
}

std::string Link(std::string_view name, std::string_view target, char type) {
  TarHeader header = MakeTarHeader(name, type, 0, 0777, 0);
  target.copy(header.link, sizeof(header.link));
  SetTarSize(header, 0);
  return {reinterpret_cast<const char*>(&header), sizeof(header)};
}

TEST(RootfsDiffTest, BringsAContainersChangesToAFreshRoot) {
  const std::string lower =
      "mkdir -p etc opt/app/old var; echo a >etc/group; echo b >etc/passwd; echo c >opt/app/old/x;"
      "echo d >var/gone; echo e >var/mode; ln -s group etc/link";
  const Overlay first(lower);
  Shell(first.root(),
        "rm etc/group var/gone; echo new >etc/passwd; chmod 640 var/mode; chown 7:8 var/mode;"
        "rm -r opt/app; mkdir opt/app; echo new >opt/app/n; ln opt/app/n opt/app/hard;"
        "mkfifo var/fifo; ln -s /nowhere var/dangling; touch -d @86400 var/old;"
        "echo suid >var/suid; chown 5:6 var/suid; chmod 4755 var/suid; mkdir -m 1777 var/tmp;"
        "echo u >'var/\xc3\xbc'; echo r >\"$(printf 'var/raw\\377')\"; mknod var/null c 1 3");
  const TempFolder folder;
  ASSERT_THAT(WriteDelta(first.upper(), folder / "a.tar"), IsOk());

  const Overlay second(lower);
  const auto applied = ApplyDelta(folder / "a.tar", second.root(), {.allow_devices = true});
  ASSERT_THAT(applied, IsOk());
  EXPECT_THAT(applied->notes, IsEmpty());
  EXPECT_EQ(Listing(second.root()), Listing(first.root()));
  EXPECT_EQ(Slurp(second.root() + "/opt/app/hard"), "new\n");
  EXPECT_EQ(Slurp(second.root() + "/etc/passwd"), "new\n");
}

TEST(RootfsDiffTest, KeepsAttributesThatAreTheFilesOwn) {
  const Overlay first("mkdir d");
  const std::string file = first.root() + "/d/f";
  Spill(file, "x");
  ASSERT_THAT(::setxattr(file.c_str(), "user.mine", "1", 1, 0), SyscallSucceeds());
  ASSERT_THAT(::setxattr(file.c_str(), "trusted.host", "1", 1, 0), SyscallSucceeds());
  // vfs_cap_data, revision 2, effective: CAP_NET_BIND_SERVICE (capabilities(7)).
  const std::string capability("\x01\0\0\x02\0\x04\0\0\0\0\0\0\0\0\0\0\0\0\0\0", 20);
  ASSERT_THAT(
      ::setxattr(file.c_str(), "security.capability", capability.data(), capability.size(), 0),
      SyscallSucceeds());
  const TempFolder folder;
  ASSERT_THAT(WriteDelta(first.upper(), folder / "a.tar"), IsOk());

  const auto names = [&](bool allow) {
    const Overlay second("true");
    EXPECT_THAT(ApplyDelta(folder / "a.tar", second.root(), {.allow_capabilities = allow}), IsOk());
    std::string list(1000, '\0');
    const ssize_t length = ::listxattr((second.root() + "/d/f").c_str(), list.data(), list.size());
    list.resize(static_cast<std::size_t>(std::max<ssize_t>(length, 0)));
    return list;
  };
  EXPECT_EQ(names(false), std::string("user.mine\0", 10));
  EXPECT_THAT(names(true), HasSubstr("security.capability"));
}

TEST(RootfsDiffTest, LeavesOutMountsSocketsAndTheKernelsFolders) {
  const Overlay root("true");
  Shell(root.root(), "mkdir -p data/x etc dev run; touch data/x/y etc/hosts dev/z run/pid");
  sockaddr_un address = {.sun_family = AF_UNIX, .sun_path = {}};
  (root.root() + "/run/s").copy(address.sun_path, sizeof(address.sun_path) - 1);
  const UniqueFd socket(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
  ASSERT_THAT(::bind(socket.get(), reinterpret_cast<sockaddr*>(&address), sizeof(address)),
              SyscallSucceeds());
  const TempFolder folder;
  ASSERT_THAT(WriteDelta(root.upper(), folder / "a.tar", {"/data/", "/etc/hosts"}), IsOk());

  const TempFolder fresh;
  ASSERT_THAT(ApplyDelta(folder / "a.tar", fresh.path()), IsOk());
  Shell(fresh.path(), "find . -mindepth 1 | sort | tr '\\n' ' ' >" + (folder / "list"));
  EXPECT_EQ(Slurp(folder / "list"), "./etc ./run ./run/pid ");
}

TEST(RootfsDiffTest, RefusesAnOverlayThatKeepsContentElsewhere) {
  const TempFolder upper;
  Shell(upper.path(), "mkdir moved");
  if (::setxattr((upper / "moved").c_str(), "trusted.overlay.redirect", "/old", 4, 0) != 0) {
    GTEST_SKIP() << "no trusted attributes in " << upper.path();
  }
  const TempFolder folder;
  EXPECT_THAT(WriteDelta(upper.path(), folder / "a.tar"),
              StatusIs(StatusCode::kUnimplemented, HasSubstr("/moved")));
  EXPECT_THAT(folder.Names(), IsEmpty());
}

TEST(RootfsDiffTest, ReadsContainerdsAndPodmansDeltas) {
  for (const char* const name :
       {"containerd-2.1.9-criu-4.2.1-counter", "podman-5.8.6-criu-4.2.1-counter"}) {
    const TempFolder root;
    Shell(root.path(), "mkdir tmp");
    ASSERT_THAT(ApplyDelta("unit/testdata/archives/" + std::string(name) + ".tar", root.path()),
                IsOk());
    EXPECT_EQ(Slurp(root / "tmp/state"), "kept\n") << name;
  }
}

TEST(RootfsDiffTest, RemovesTheDeletedFilesOfCrio) {
  const TempFolder folder;
  Shell(folder.path(),
        "mkdir -p root/a/b; touch root/a/b/c root/keep outside; ln -s ../outside root/l");
  Spill(folder / "a.tar", TarMember(kDeletedFilesName, R"(["/a", "/l/", "/no/such"])") + TarEnd());
  ASSERT_THAT(ApplyDelta(folder / "a.tar", folder / "root"), IsOk());
  EXPECT_EQ(Slurp(folder / "root.listing"), "");
  Shell(folder / "root", "test ! -e a; test ! -L l; test -e keep; test -e ../outside");
  for (const char* const list : {R"(["/../outside"])", R"(["/"])", R"([1])", "{}"}) {
    Spill(folder / "a.tar", TarMember(kDeletedFilesName, list) + TarEnd());
    EXPECT_THAT(ApplyDelta(folder / "a.tar", folder / "root"),
                StatusIs(StatusCode::kInvalidArgument))
        << list;
  }
}

TEST(RootfsDiffTest, NeverClimbsOutOfTheRoot) {
  const TempFolder folder;
  Shell(folder.path(), "mkdir -p root/sub; echo safe >secret; ln -s ../.. root/sub/up; ln -s " +
                           folder.path() + " root/absolute");
  const std::string root = folder / "root";
  for (const std::string& layer : {
           TarMember("../secret", "evil"),
           TarMember("/secret", "evil"),
           TarMember("sub/../../secret", "evil"),
           TarMember("sub/.wh...", ""),
           TarMember("../.wh.secret", ""),
           Link("hard", "../secret", '1'),
           Link("hard", folder / "secret", '1'),
       }) {
    EXPECT_THAT(ApplyLayer(layer + TarEnd(), root), StatusIs(StatusCode::kInvalidArgument));
  }
  // Through links the same names stay inside, as they would in the container.
  EXPECT_THAT(ApplyLayer(TarMember("sub/up/secret", "evil") + TarEnd(), root), IsOk());
  EXPECT_THAT(ApplyLayer(Link("out", "..", '2') + TarMember("out/secret", "evil") + TarEnd(), root),
              IsOk());
  EXPECT_THAT(ApplyLayer(TarMember("absolute/.wh.secret", "") + TarEnd(), root),
              ::testing::Not(IsOk()));  // a link to where nothing is inside
  EXPECT_EQ(Slurp(folder / "secret"), "safe\n");
  EXPECT_EQ(Slurp(folder / "root/secret"), "evil");
}

TEST(RootfsDiffTest, ReplacesALinkInsteadOfWritingThroughIt) {
  const TempFolder folder;
  Shell(folder.path(), "mkdir root; echo safe >secret; ln -s ../secret root/f; ln secret root/g");
  ASSERT_THAT(ApplyLayer(TarMember("f", "new") + TarMember("g", "new") + TarEnd(), folder / "root"),
              IsOk());
  EXPECT_EQ(Slurp(folder / "secret"), "safe\n");
  EXPECT_EQ(Slurp(folder / "root/f") + Slurp(folder / "root/g"), "newnew");
}

TEST(RootfsDiffTest, MakesNoDeviceUnlessAllowed) {
  const TempFolder root;
  TarHeader header = MakeTarHeader("sda", '4', 0, 0666, 0);
  header.dev_major[5] = '1';  // 8, the major of disks, in octal
  SetTarSize(header, 0);
  const std::string layer(reinterpret_cast<const char*>(&header), sizeof(header));
  const auto applied = ApplyLayer(layer + TarEnd(), root.path());
  ASSERT_THAT(applied, IsOk());
  EXPECT_THAT(applied->notes, ElementsAre(HasSubstr("/sda is a device node")));
  EXPECT_THAT(root.Names(), IsEmpty());
}

TEST(RootfsDiffTest, LeavesMountsOfTheLiveContainerAlone) {
  const TempFolder folder;
  Shell(folder.path(),
        "mkdir -p root/data root/etc; echo live >root/etc/hosts; ln -s etc root/alias");
  const std::string root = folder / "root";
  ASSERT_THAT(::mount("stasis-test", (root + "/data").c_str(), "tmpfs", 0, "size=1m"),
              SyscallSucceeds());
  const absl::Cleanup unmount = [&] { ::umount2((root + "/data").c_str(), MNT_DETACH); };
  const auto applied = ApplyLayer(TarMember("data/evil", "x") + TarMember("alias/hosts", "x") +
                                      TarMember(".wh.data", "") + TarMember(".wh.etc", "") +
                                      TarMember("dev/x", "") + TarEnd(),
                                  root, {.leave_out = {"/etc/hosts"}});
  ASSERT_THAT(applied, IsOk());
  EXPECT_EQ(applied->notes.size(), 5u);
  EXPECT_EQ(Slurp(root + "/etc/hosts"), "live\n");
  Shell(root, "test ! -e data/evil");
}

TEST(RootfsDiffTest, KeepsToItsLimits) {
  const TempFolder root;
  const std::string layer = TarMember("a", "12345") + TarMember("b", "12345") + TarEnd();
  EXPECT_THAT(ApplyLayer(layer, root.path(), {.max_entries = 1}),
              StatusIs(StatusCode::kResourceExhausted));
  EXPECT_THAT(ApplyLayer(layer, root.path(), {.max_bytes = 9}),
              StatusIs(StatusCode::kResourceExhausted));
  EXPECT_THAT(ApplyLayer(layer.substr(0, 700), root.path()), StatusIs(StatusCode::kDataLoss));
}

}  // namespace
}  // namespace stasis::archive
