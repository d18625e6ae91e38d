#include "cri/activity.h"

#include <utility>

namespace stasis::cri {

using std::chrono::steady_clock;

struct Activity::Entry {
  std::mutex mutex;
  RunningCheckpoint about;
  steady_clock::time_point stands_still_since;
  std::stop_source stop;
};

Activity::Checkpoint::Checkpoint(Activity& activity, std::shared_ptr<Entry> entry,
                                 const std::stop_token& caller)
    : activity_(activity), entry_(std::move(entry)), pass_(caller, PassStop{entry_->stop}) {}

Activity::Checkpoint::~Checkpoint() {
  const std::lock_guard lock(activity_.mutex_);
  activity_.running_.erase(entry_->about.number);
}

std::stop_token Activity::Checkpoint::stop() const { return entry_->stop.get_token(); }

void Activity::Checkpoint::Watch(engine::DumpRequest& request) const {
  request.progress = [entry = entry_](std::uint64_t done_bytes, std::uint64_t total_bytes) {
    const std::lock_guard lock(entry->mutex);
    entry->about.done_bytes = done_bytes;
    entry->about.total_bytes = total_bytes;
  };
  request.stop_changed = [entry = entry_](bool stands_still, std::chrono::microseconds so_far) {
    const std::lock_guard lock(entry->mutex);
    entry->about.stands_still = stands_still;
    entry->about.frozen = so_far;
    entry->stands_still_since = steady_clock::now();
  };
}

std::unique_ptr<Activity::Checkpoint> Activity::Begin(RunningCheckpoint about,
                                                      const std::stop_token& caller) {
  auto entry = std::make_shared<Entry>();
  {
    const std::lock_guard lock(mutex_);
    about.number = ++last_number_;
    entry->about = std::move(about);
    running_.emplace(entry->about.number, entry);
  }
  return std::make_unique<Checkpoint>(*this, std::move(entry), caller);
}

std::vector<RunningCheckpoint> Activity::Running() const {
  const std::lock_guard lock(mutex_);
  std::vector<RunningCheckpoint> running;
  for (const auto& [number, entry] : running_) {
    const std::lock_guard entry_lock(entry->mutex);
    RunningCheckpoint& now = running.emplace_back(entry->about);
    if (!now.stands_still) continue;
    now.frozen += std::chrono::duration_cast<std::chrono::microseconds>(steady_clock::now() -
                                                                        entry->stands_still_since);
  }
  return running;
}

bool Activity::Cancel(std::uint64_t number) {
  std::shared_ptr<Entry> entry;
  {
    const std::lock_guard lock(mutex_);
    const auto found = running_.find(number);
    if (found == running_.end()) return false;
    entry = found->second;
  }
  return entry->stop.request_stop();  // outside the lock: it calls what waits for it
}

void Activity::Add(Totals& to, const Totals& one) {
  const std::lock_guard lock(mutex_);
  to.succeeded += one.succeeded;
  for (const auto& [code, count] : one.failed) to.failed[code] += count;
  to.bytes += one.bytes;
  to.compression.plain_bytes += one.compression.plain_bytes;
  to.compression.stored_bytes += one.compression.stored_bytes;
  to.compression.cpu += one.compression.cpu;
  to.frozen += one.frozen;
  to.total += one.total;
}

Totals Activity::Copy(const Totals& from) const {
  const std::lock_guard lock(mutex_);
  return from;
}

void Activity::Tell(const EventSubject& of, const char* reason, std::string message) {
  Tell(of, /*is_warning=*/false, reason, std::move(message));
}

void Activity::Warn(const EventSubject& of, const char* reason, std::string message) {
  Tell(of, /*is_warning=*/true, reason, std::move(message));
}

void Activity::Tell(const EventSubject& of, bool is_warning, const char* reason,
                    std::string message) {
  if (events_ == nullptr || of.names.pod.empty()) return;
  events_->Tell({.of = of,
                 .is_warning = is_warning,
                 .reason = reason,
                 .message = "container " + of.names.container + " " + std::move(message),
                 .time = std::chrono::system_clock::now()});
}

}  // namespace stasis::cri
