#include "engine/files/message_queue.h"

#include <mqueue.h>
#include <signal.h>

#include "unit/engine/files/local_context.h"
#include "unit/support/child.h"

namespace stasis::engine {
namespace {

using ::stasis::testing::Child;
using ::stasis::testing::IsOk;
using ::stasis::testing::StatusIs;
using ::testing::HasSubstr;

// Its name goes with the test.
class MessageQueueTest : public ::testing::Test {
 protected:
  MessageQueueTest() {
    mq_attr limits = {};
    limits.mq_maxmsg = 4;
    limits.mq_msgsize = 16;
    queue_ = Fd(::mq_open(name_.c_str(), O_CREAT | O_RDWR | O_NONBLOCK, 0600, &limits));
  }
  ~MessageQueueTest() override { ::mq_unlink(name_.c_str()); }

  static void Send(int queue, unsigned priority, const std::string& text) {
    EXPECT_EQ(::mq_send(queue, text.data(), text.size(), priority), 0);
  }
  static std::string Receive(int queue) {
    char text[16];
    unsigned priority = 0;
    const ssize_t size = ::mq_receive(queue, text, sizeof(text), &priority);
    if (size < 0) return "none";
    return std::to_string(priority) + std::string(text, static_cast<std::size_t>(size));
  }

  const std::string name_ = "/stasis-unit-" + std::to_string(::getpid());
  UniqueFd queue_;
};

TEST_F(MessageQueueTest, ComesBackWithItsMessagesInTheirOrder) {
  Send(queue_.get(), 2, "b");
  Send(queue_.get(), 9, "a");
  Send(queue_.get(), 2, "c");
  LocalDumpContext dump;
  dump.Add(queue_.get());
  ASSERT_THAT(dump.DumpAll(), IsOk());
  for (const char* const text : {"9a", "2b", "2c", "none"}) {
    EXPECT_EQ(Receive(queue_.get()), text) << "the dump changed the original";
  }
  ASSERT_EQ(::mq_unlink(name_.c_str()), 0);
  LocalRestoreContext restore(dump);
  const Result<UniqueFd> restored = restore.Restore(1);
  ASSERT_THAT(restored, IsOk());
  for (const char* const text : {"9a", "2b", "2c", "none"}) {
    EXPECT_EQ(Receive(restored->get()), text);
  }
}

TEST_F(MessageQueueTest, OneThatIsThereAlreadyKeepsItsMessages) {
  LocalDumpContext dump;
  dump.Add(queue_.get());
  ASSERT_THAT(dump.DumpAll(), IsOk());
  Send(queue_.get(), 0, "new");
  LocalRestoreContext restore(dump);
  const Result<UniqueFd> restored = restore.Restore(1);
  ASSERT_THAT(restored, IsOk());
  EXPECT_EQ(Receive(restored->get()), "0new");
  EXPECT_THAT(restore.notes, ::testing::Contains(HasSubstr("the messages of now")));
}

TEST_F(MessageQueueTest, RefusesAnotherQueueOfThatName) {
  LocalDumpContext dump;
  dump.Add(queue_.get());
  ASSERT_THAT(dump.DumpAll(), IsOk());
  dump.entries[0].mutable_stasis_queue()->set_max_messages(5);
  LocalRestoreContext restore(dump);
  EXPECT_THAT(restore.Restore(1), StatusIs(StatusCode::kAlreadyExists));
}

TEST_F(MessageQueueTest, RefusesOneThatIsToTellOfAMessage) {
  sigevent event = {};
  event.sigev_notify = SIGEV_NONE;
  ASSERT_EQ(::mq_notify(queue_.get(), &event), 0);
  LocalDumpContext dump;
  dump.Add(queue_.get());
  const Status status = dump.DumpAll();
  EXPECT_THAT(status, StatusIs(StatusCode::kUnimplemented));
  EXPECT_THAT(std::string(status.message()), HasSubstr("mq_notify"));
}

TEST_F(MessageQueueTest, RefusesMessagesThatSomebodyElseMayRead) {
  Send(queue_.get(), 0, "whose");
  const Child other([] { return ::pause(); });
  LocalDumpContext dump;
  dump.Add(queue_.get());
  const Status status = dump.DumpAll();
  EXPECT_THAT(status, StatusIs(StatusCode::kUnimplemented));
  EXPECT_THAT(std::string(status.message()), HasSubstr("pid " + std::to_string(other.pid())));
}

TEST_F(MessageQueueTest, RefusesAttributesThatNoQueueCanHave) {
  LocalDumpContext dump;
  dump.Add(queue_.get());
  ASSERT_THAT(dump.DumpAll(), IsOk());
  dump.entries[0].mutable_stasis_queue()->set_message_bytes(std::uint64_t{1} << 40);
  LocalRestoreContext restore(dump);
  EXPECT_THAT(restore.Restore(1), StatusIs(StatusCode::kInvalidArgument));
}

}  // namespace
}  // namespace stasis::engine
