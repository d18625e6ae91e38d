// What the agent did since it started, and which checkpoints are under way: for metrics, and to watch and end
// them. Safe to use from any thread.
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <stop_token>
#include <string>
#include <vector>

#include "archive/compression.h"
#include "cri/container_facts.h"
#include "cri/pod_events.h"
#include "engine/base/status.h"
#include "engine/base/stop.h"
#include "engine/dump.h"

namespace stasis::cri {

/// A checkpoint under way, as it was when asked.
struct RunningCheckpoint {
  std::uint64_t number = 0;  ///< Of this process; never given twice.
  PodContainer of;
  std::string container_id;
  std::string location;
  std::chrono::system_clock::time_point started;
  std::uint64_t done_bytes = 0;  ///< Of memory, in the present round.
  std::uint64_t total_bytes = 0;
  bool stands_still = false;
  std::chrono::microseconds frozen{};  ///< So far, in all stops.
};

/// Checkpoints or restores that ended.
struct Totals {
  std::uint64_t succeeded = 0;
  std::map<StatusCode, std::uint64_t> failed;
  std::uint64_t bytes = 0;                      ///< Of archives.
  archive::CompressionReport compression = {};  ///< Of those that were compressed.
  std::chrono::microseconds frozen{};
  std::chrono::microseconds total{};
};

class Activity {
 private:
  struct Entry;

 public:
  /// A checkpoint under way, until destroyed.
  class Checkpoint {
   public:
    Checkpoint(Activity& activity, std::shared_ptr<Entry> entry, const std::stop_token& caller);
    Checkpoint(const Checkpoint&) = delete;
    Checkpoint& operator=(const Checkpoint&) = delete;
    ~Checkpoint();

    /// Requested when the caller's was, and by Cancel.
    std::stop_token stop() const;
    /// Has `request` tell how far it is. This outlives the dump.
    void Watch(engine::DumpRequest& request) const;

   private:
    Activity& activity_;
    std::shared_ptr<Entry> entry_;
    std::stop_callback<PassStop> pass_;
  };

  /// `events` outlives this; null: nobody is told.
  explicit Activity(PodEvents* events = nullptr) : events_(events) {}

  std::unique_ptr<Checkpoint> Begin(RunningCheckpoint about, const std::stop_token& caller);

  void CheckpointEnded(const Totals& one) { Add(checkpoints_, one); }
  void RestoreEnded(const Totals& one) { Add(restores_, one); }

  std::vector<RunningCheckpoint> Running() const;
  /// Ends checkpoint `number` early; its container runs on. False: it is not under way.
  bool Cancel(std::uint64_t number);

  Totals checkpoints() const { return Copy(checkpoints_); }
  Totals restores() const { return Copy(restores_); }
  /// Tells those who look at the pod.
  void Tell(const EventSubject& of, const char* reason, std::string message);
  void Warn(const EventSubject& of, const char* reason, std::string message);
  /// Null: events are not written.
  const PodEvents* events() const { return events_; }

  /// CRI calls that were passed on to the runtime.
  std::atomic<std::uint64_t>& forwarded() { return forwarded_; }

 private:
  void Add(Totals& to, const Totals& one);
  Totals Copy(const Totals& from) const;
  void Tell(const EventSubject& of, bool is_warning, const char* reason, std::string message);

  PodEvents* const events_;
  mutable std::mutex mutex_;
  std::uint64_t last_number_ = 0;
  std::map<std::uint64_t, std::shared_ptr<Entry>> running_;
  Totals checkpoints_;
  Totals restores_;
  std::atomic<std::uint64_t> forwarded_ = 0;
};

}  // namespace stasis::cri
