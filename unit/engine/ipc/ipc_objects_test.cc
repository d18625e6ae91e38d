#include "engine/ipc/ipc_objects.h"

#include <sched.h>
#include <sys/msg.h>
#include <sys/sem.h>
#include <sys/shm.h>

#include "engine/ipc/ipc_namespace.h"
#include "unit/engine/dump_fixture.h"
#include "unit/engine/memory/restore_fixture.h"

namespace stasis::engine {
namespace {

using ::stasis::testing::Child;
using ::stasis::testing::IsOk;
using ::stasis::testing::MemoryImages;
using ::stasis::testing::StatusIs;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::SizeIs;

// Semaphores, a message and a segment that nobody is attached to, in an IPC namespace of the program's own.
void MakeObjects() {
  if (::unshare(CLONE_NEWIPC) != 0) ::_exit(1);
  const int set = ::semget(77, 3, IPC_CREAT | 0600);
  if (set < 0 || ::semctl(set, 1, SETVAL, 5) != 0) ::_exit(1);
  const int queue = ::msgget(IPC_PRIVATE, 0600);
  const struct {
    long type;
    char text[4];
  } message = {.type = 9, .text = "abc"};
  if (::msgsnd(queue, &message, 3, 0) != 0) ::_exit(1);
  if (::shmget(78, 4096, IPC_CREAT | 0600) < 0) ::_exit(1);
}

TEST(IpcObjectsTest, ThoseOfANamespaceOfItsOwnAreInTheImages) {
  SharedWords words;
  const Child child = Prepared(words, MakeObjects);
  MemoryImages images;
  ASSERT_THAT(DumpTo(child.pid(), images), IsOk());
  const auto loaded = LoadCheckpoint(images);
  ASSERT_THAT(loaded, IsOk());
  const std::uint32_t ns = loaded->processes.front().ids.ipc_ns_id();
  auto sets = ImageFileReader::Open(images, ImageName("ipcns-sem", ns), "ipcns-sem");
  ASSERT_THAT(sets, IsOk());
  image::IpcSemEntry set;
  ASSERT_THAT(sets->Record(set), IsOk());
  EXPECT_EQ(set.desc().key(), 77u);
  EXPECT_EQ(sets->Rest(), std::string_view("\0\0\5\0\0\0\0\0", 8));
  auto queues = ImageFileReader::Open(images, ImageName("ipcns-msg", ns), "ipcns-msg");
  ASSERT_THAT(queues, IsOk());
  image::IpcMsgEntry queue;
  ASSERT_THAT(queues->Record(queue), IsOk());
  EXPECT_EQ(queue.qnum(), 1u);
  image::IpcMsg message;
  ASSERT_THAT(queues->Record(message), IsOk());
  EXPECT_EQ(message.mtype(), 9u);
  EXPECT_EQ(queues->Rest(), std::string_view("abc\0\0\0\0\0", 8));
  const auto segments =
      ReadRecords<image::IpcShmEntry>(images, ImageName("ipcns-shm", ns), "ipcns-shm");
  ASSERT_THAT(segments, IsOk());
  EXPECT_THAT(*segments, SizeIs(1));
}

class RestoreIpcTest : public ::testing::Test {
 protected:
  RestoreIpcTest() {
    EXPECT_THAT(program_.process().remote->Call("unshare", SYS_unshare, CLONE_NEWIPC), IsOk());
  }
  Status Restore(const image::IpcSemEntry& set, const std::string& values) {
    ImageFileBuilder file("ipcns-sem");
    EXPECT_THAT(file.Add(set), IsOk());
    file.AddRaw(values);
    source_.files["ipcns-sem-9.img"] = file.bytes();
    return RestoreSemaphores(program_.process(), source_, "ipcns-sem-9.img", notes_);
  }
  static image::IpcSemEntry Set(std::uint32_t count, std::uint32_t key = 5) {
    image::IpcSemEntry set;
    image::IpcDescEntry& description = *set.mutable_desc();
    description.set_key(key);
    description.set_id(1234);
    description.set_mode(0600);
    description.set_uid(1);
    description.set_gid(2);
    description.set_cuid(0);
    description.set_cgid(0);
    set.set_nsems(count);
    return set;
  }

  testing::FreshProgram program_;
  testing::MapSource source_;
  std::vector<std::string> notes_;
};

TEST_F(RestoreIpcTest, ASetHasItsIdOwnerAndValues) {
  ASSERT_THAT(Restore(Set(2), std::string("\1\0\2\0\0\0\0\0", 8)), IsOk());
  EXPECT_THAT(InIpcNamespace(program_.pid(),
                             []() -> Status {
                               semid_ds set = {};
                               EXPECT_EQ(::semctl(1234, 0, IPC_STAT, &set), 0);
                               EXPECT_EQ(set.sem_perm.uid, 1u);
                               EXPECT_EQ(::semctl(1234, 1, GETVAL), 2);
                               return OkStatus();
                             }),
              IsOk());
  EXPECT_THAT(notes_, IsEmpty());
}

TEST_F(RestoreIpcTest, ASetThatIsThereStaysAndOneOfAnotherKeyIsInTheWay) {
  ASSERT_THAT(Restore(Set(1), std::string(8, '\0')), IsOk());
  EXPECT_THAT(Restore(Set(1), std::string(8, '\1')), IsOk());
  EXPECT_THAT(notes_, SizeIs(1));
  EXPECT_THAT(Restore(Set(1, 6), std::string(8, '\0')),
              StatusIs(StatusCode::kAlreadyExists, HasSubstr("1234")));
}

TEST_F(RestoreIpcTest, BrokenImagesAreRefused) {
  EXPECT_THAT(Restore(Set(0), ""), StatusIs(StatusCode::kInvalidArgument, HasSubstr("a set of 0")));
  EXPECT_THAT(Restore(Set(1'000'000), ""), StatusIs(StatusCode::kInvalidArgument));
  EXPECT_THAT(Restore(Set(5), std::string(8, '\0')), StatusIs(StatusCode::kDataLoss));
}

}  // namespace
}  // namespace stasis::engine
