#include "kubelet-api/events/event_queue.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace stasis::kubelet_api {
namespace {

using std::chrono::seconds;

const EventQueue::Time kStart = EventQueue::Time() + std::chrono::hours(1);

cri::PodEvent Event(const std::string& pod, const std::string& message = "m") {
  return {.of = {{.pod_namespace = "n", .pod = pod, .container = "c"}, "uid"},
          .reason = "RestoreFailed",
          .message = message,
          .time = {}};
}

TEST(EventQueueTest, ACrashLoopIsOneSeriesThatIsWrittenEveryFewSeconds) {
  EventQueue queue;
  EventQueue::Time now = kStart;
  int writes = 0;
  std::uint64_t told = 0;
  for (int i = 0; i < 600; ++i, now += std::chrono::milliseconds(100)) {
    ASSERT_TRUE(queue.Put(Event("p", "attempt " + std::to_string(i)), now));
    if (auto taken = queue.Take(now)) {
      ++writes;
      told = taken->series.count;
      EXPECT_EQ(taken->series.latest.message, "attempt " + std::to_string(i));
      taken->series.object = "p.1";
      queue.Written(*taken, now);
    }
  }
  EXPECT_EQ(writes, 12);  // in a minute
  EXPECT_GE(told, 550U);
}

TEST(EventQueueTest, ANewSeriesWhenTheOldOneIsLongOver) {
  EventQueue queue;
  ASSERT_TRUE(queue.Put(Event("p"), kStart));
  auto taken = queue.Take(kStart);
  ASSERT_TRUE(taken);
  taken->series.object = "p.1";
  queue.Written(*taken, kStart);
  const auto later = kStart + std::chrono::minutes(11);
  ASSERT_TRUE(queue.Put(Event("p"), later));
  taken = queue.Take(later);
  ASSERT_TRUE(taken);
  EXPECT_EQ(taken->series.count, 1U);
  EXPECT_FALSE(taken->series.is_there);
}

TEST(EventQueueTest, WhatCannotBeWrittenFillsItAndThenIsDropped) {
  EventQueue queue;
  int pods = 0;
  while (queue.Put(Event("p" + std::to_string(pods)), kStart)) ASSERT_LT(++pods, 10000);
  EXPECT_EQ(pods, 256);
  EXPECT_TRUE(queue.Put(Event("p0"), kStart));  // of a series that waits already
  const auto taken = queue.Take(kStart);
  ASSERT_TRUE(taken);
  queue.Drop(*taken);
  EXPECT_TRUE(queue.Put(Event("another"), kStart));
}

TEST(EventQueueTest, WhatIsPutBackKeepsItsNameAndIsGivenUpInTheEnd) {
  EventQueue queue;
  ASSERT_TRUE(queue.Put(Event("p"), kStart));
  auto taken = queue.Take(kStart);
  ASSERT_TRUE(taken);
  taken->series.object = "p.1";
  EXPECT_TRUE(queue.PutBack(*taken, kStart, kStart + seconds(5)));
  EXPECT_FALSE(queue.Take(kStart + seconds(4)));
  taken = queue.Take(kStart + seconds(5));
  ASSERT_TRUE(taken);
  EXPECT_EQ(taken->series.object, "p.1");
  EXPECT_EQ(taken->series.untold, 1U);
  EXPECT_FALSE(queue.PutBack(*taken, kStart + std::chrono::minutes(11), kStart));
  EXPECT_TRUE(queue.empty());
}

TEST(EventQueueTest, TextOfAContainerIsPrintableAndBounded) {
  EXPECT_EQ(Printable("a\nb\x1b[31m\xff\xc3\xa9", 100), "a b?[31m???");
  EXPECT_EQ(Printable(std::string(2000, 'x'), 10), "xxxxxx ...");
  EventQueue queue;
  ASSERT_TRUE(queue.Put(Event("p", std::string(100000, '\0')), kStart));
  const auto taken = queue.Take(kStart);
  ASSERT_TRUE(taken);
  EXPECT_EQ(taken->series.latest.message.size(), 1024U);
}

}  // namespace
}  // namespace stasis::kubelet_api
