// Source  wire format of CRIU 4.2; madvise(2) MADV_GUARD_INSTALL, signal(7), getrlimit(2)
#include "engine/checkpoint_checks.h"

#include <algorithm>
#include <span>
#include <string>
#include <vector>

namespace stasis::engine {
namespace {

using image::CoreEntry;
using image::VmaEntry;

constexpr std::uint64_t kPage = 4096;
constexpr std::uint64_t kAddressLimit = std::uint64_t{1} << 56;  // with five levels of page tables

constexpr int kSigactions = 62;  // 1 to 64 without SIGKILL and SIGSTOP, whose action cannot be set
constexpr int kRlimits = 16;     // RLIM_NLIMITS
constexpr std::size_t kSiginfoBytes = 128;

// VmaEntry.status
constexpr std::uint32_t kVsyscallArea = 0x4;
constexpr std::uint32_t kFileArea = 0x40 | 0x80;  // private, shared
constexpr std::uint32_t kMemfdArea = 0x4000;
constexpr std::uint32_t kPluginArea = 1 << 27;
constexpr std::uint32_t kGuardArea = 0x10000;

std::string Text(std::uint64_t number) { return std::to_string(number); }

Status CheckBounds(const std::string& name, const VmaEntry& area) {
  const std::uint64_t limit =
      (area.status() & kVsyscallArea) != 0 ? ~std::uint64_t{0} : kAddressLimit;
  if (area.start() >= area.end() || area.end() > limit || area.start() % kPage != 0 ||
      area.end() % kPage != 0) {
    return Broken(name, "an area from " + Text(area.start()) + " to " + Text(area.end()));
  }
  return OkStatus();
}

Status CheckMappedFile(const std::string& name, const VmaEntry& area,
                       const CheckpointImages& images) {
  if ((area.status() & kFileArea) == 0) return OkStatus();
  const image::FdTypes type = (area.status() & kMemfdArea) != 0    ? image::FD_MEMFD
                              : (area.status() & kPluginArea) != 0 ? image::FD_EXT
                                                                   : image::FD_REG;
  if (area.shmid() <= UINT32_MAX && images.File(type, static_cast<std::uint32_t>(area.shmid()))) {
    return OkStatus();
  }
  return Broken(name, "the area at " + Text(area.start()) + " maps file " + Text(area.shmid()) +
                          ", which files.img does not have");
}

// Guards mark parts of real areas (MADV_GUARD_INSTALL): what they cover must be covered without a
// gap.
bool IsCovered(const VmaEntry& guard, std::span<const VmaEntry* const> areas) {
  auto area = std::ranges::upper_bound(areas, guard.start(), {},
                                       [](const VmaEntry* a) { return a->start(); });
  if (area == areas.begin()) return false;
  std::uint64_t reached = guard.start();
  for (--area; area != areas.end() && (*area)->start() <= reached; ++area) {
    if ((*area)->end() <= reached) return false;
    reached = (*area)->end();
    if (reached >= guard.end()) return true;
  }
  return false;
}

Status CheckPending(const std::string& name, const image::SignalQueueEntry& queue) {
  for (const image::SiginfoEntry& signal : queue.signals()) {
    if (signal.siginfo().size() != kSiginfoBytes) {
      return Broken(name, "a pending signal of " + Text(signal.siginfo().size()) + " bytes");
    }
  }
  return OkStatus();
}

}  // namespace

Status Broken(std::string_view name, std::string_view what) {
  return InvalidArgument(std::string(name) + ": " + std::string(what));
}

Status CheckAreas(const std::string& name, const image::MmEntry& mm,
                  const CheckpointImages& images) {
  std::vector<const VmaEntry*> areas;
  bool guards = false;
  for (const VmaEntry& area : mm.vmas()) {
    RETURN_IF_ERROR(CheckBounds(name, area));
    RETURN_IF_ERROR(CheckMappedFile(name, area, images));
    const bool guard = (area.status() & kGuardArea) != 0;
    if (guard ? !IsCovered(area, areas)
              : guards || (!areas.empty() && area.start() < areas.back()->end())) {
      return Broken(name, "the area at " + Text(area.start()) + " overlaps or is out of order");
    }
    guards = guard;
    if (!guard) areas.push_back(&area);
  }
  return OkStatus();
}

Status CheckArchitecture(const std::string& name, const CoreEntry& core) {
  if (core.mtype() == image::MARCH_X86_64) return OkStatus();
  return FailedPrecondition(name + ": the checkpoint is of a processor of type " +
                            image::CoreEntryMarch_Name(core.mtype()) +
                            ", this one is MARCH_X86_64; restore it on a node of its own type");
}

Status CheckThread(const std::string& name, const CoreEntry& core) {
  RETURN_IF_ERROR(CheckArchitecture(name, core));
  if (!core.has_thread_info()) return Broken(name, "a thread without registers");
  if (!core.has_thread_core()) return Broken(name, "a thread without attributes (thread_core)");
  if (!core.thread_core().has_creds()) return Broken(name, "a thread without credentials");
  return CheckPending(name, core.thread_core().signals_p());
}

Status CheckLeader(const std::string& name, const CoreEntry& core) {
  RETURN_IF_ERROR(CheckThread(name, core));
  const image::TaskCoreEntry& task = core.tc();
  if (task.task_state() != kAlive && task.task_state() != kStopped) {
    return Broken(name, "a task in state " + Text(task.task_state()));
  }
  if (task.sigactions_size() != kSigactions) {
    return Broken(name, std::to_string(task.sigactions_size()) + " signal actions, not 62");
  }
  if (task.rlimits().rlimits_size() != kRlimits) {
    return Broken(name, std::to_string(task.rlimits().rlimits_size()) + " resource limits, not 16");
  }
  return CheckPending(name, task.signals_s());
}

}  // namespace stasis::engine
