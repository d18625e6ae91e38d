#include "kubelet-api/events/event_queue.h"

#include <algorithm>
#include <utility>

namespace stasis::kubelet_api {
namespace {

constexpr std::size_t kMostSeries = 256;
constexpr std::size_t kMostMessageBytes = 1024;           // what events.k8s.io/v1 takes of a note
constexpr auto kBetweenWrites = std::chrono::seconds(5);  // of one series
constexpr auto kSeriesEnds = std::chrono::minutes(10);    // after its last event; as client-go's
constexpr auto kLongestWait = std::chrono::minutes(10);

std::string KeyOf(const cri::PodEvent& event) {
  const cri::PodContainer& names = event.of.names;
  return names.pod_namespace + "/" + names.pod + "/" + event.of.pod_uid + "/" + names.container +
         "/" + event.reason;
}

}  // namespace

std::string Printable(std::string_view text, std::size_t most) {
  constexpr std::string_view kCut = " ...";
  std::string printable(text.substr(0, most));
  if (text.size() > most) printable.replace(most - kCut.size(), kCut.size(), kCut);
  for (char& c : printable) {
    if (c == '\n' || c == '\t') c = ' ';
    if (c < ' ' || c > '~') c = '?';
  }
  return printable;
}

bool EventQueue::Put(cri::PodEvent event, Time now) {
  event.message = Printable(event.message, kMostMessageBytes);
  const std::string key = KeyOf(event);
  auto found = entries_.find(key);
  if (found != entries_.end() && !found->second.waits &&
      now - found->second.last_told > kSeriesEnds) {
    entries_.erase(found);
    found = entries_.end();
  }
  if (found == entries_.end()) {
    if (entries_.size() >= kMostSeries && !MakeRoom()) return false;
    found = entries_.emplace(key, Entry{}).first;
    found->second.series.first = event.time;
    found->second.next_write = now;
  }
  Entry& entry = found->second;
  entry.series.latest = std::move(event);
  ++entry.series.count;
  ++entry.series.untold;
  entry.waits = true;
  entry.last_told = now;
  return true;
}

// The one that was told of longest ago and does not wait.
bool EventQueue::MakeRoom() {
  auto oldest = entries_.end();
  for (auto at = entries_.begin(); at != entries_.end(); ++at) {
    if (at->second.waits) continue;
    if (oldest == entries_.end() || at->second.last_told < oldest->second.last_told) oldest = at;
  }
  if (oldest == entries_.end()) return false;
  entries_.erase(oldest);
  return true;
}

std::optional<EventQueue::Time> EventQueue::Due() const {
  std::optional<Time> due;
  for (const auto& [key, entry] : entries_) {
    if (entry.waits && (!due || entry.next_write < *due)) due = entry.next_write;
  }
  return due;
}

std::optional<EventQueue::Taken> EventQueue::Take(Time now) {
  auto best = entries_.end();
  for (auto at = entries_.begin(); at != entries_.end(); ++at) {
    if (!at->second.waits || at->second.next_write > now) continue;
    if (best == entries_.end() || at->second.series.latest.time < best->second.series.latest.time) {
      best = at;
    }
  }
  if (best == entries_.end()) return std::nullopt;
  best->second.waits = false;
  Taken taken{best->first, best->second.series};
  best->second.series.untold = 0;
  return taken;
}

void EventQueue::Written(const Taken& taken, Time now) {
  const auto found = entries_.find(taken.key);
  if (found == entries_.end()) return;  // pushed out meanwhile
  found->second.series.object = taken.series.object;
  found->second.series.is_there = true;
  found->second.next_write = now + kBetweenWrites;
}

bool EventQueue::PutBack(const Taken& taken, Time now, Time then) {
  const auto found = entries_.find(taken.key);
  if (found == entries_.end()) return false;
  if (now - found->second.last_told > kLongestWait) {
    entries_.erase(found);
    return false;
  }
  found->second.series.untold += taken.series.untold;
  found->second.series.object = taken.series.object;
  found->second.series.is_there = taken.series.is_there;
  found->second.waits = true;
  found->second.next_write = then;
  return true;
}

void EventQueue::Drop(const Taken& taken) {
  const auto found = entries_.find(taken.key);
  if (found != entries_.end() && !found->second.waits) entries_.erase(found);
}

}  // namespace stasis::kubelet_api
