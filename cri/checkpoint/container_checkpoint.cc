#include "cri/checkpoint/container_checkpoint.h"

#include <algorithm>
#include <iterator>
#include <optional>
#include <utility>

#include "archive/rootfs_diff.h"
#include "cri/checkpoint/free_space.h"
#include "cri/checkpoint/members.h"
#include "cri/checkpoint/own_mounts.h"
#include "cri/checkpoint/pinned_process.h"
#include "cri/checkpoint/shared_memory.h"
#include "cri/checkpoint/tmpfs_mounts.h"
#include "cri/checkpoint/upper_folder.h"
#include "cri/restore/records.h"
#include "engine/dump_watch.h"

namespace stasis::cri {
namespace {

using std::chrono::steady_clock;

const char* StateText(runtime::v1::ContainerState state) {
  switch (state) {
    case runtime::v1::ContainerState::CONTAINER_CREATED:
      return "was created but not started";
    case runtime::v1::ContainerState::CONTAINER_EXITED:
      return "has exited";
    default:
      return "does not run";
  }
}

/// Passes on what it is given for as long as the dump is wanted: a large root file system is written
/// while the container stands still.
class WantedStream : public engine::ImageStream {
 public:
  WantedStream(engine::ImageStream& stream, const engine::DumpRequest& request, FreeSpace& space)
      : stream_(stream), request_(request), space_(space) {}
  Status Write(std::span<const std::byte> bytes) override {
    RETURN_IF_ERROR(engine::StillWanted(request_));
    RETURN_IF_ERROR(space_.Wrote(bytes.size()));
    return stream_.Write(bytes);
  }
  Status Finish() override { return stream_.Finish(); }

 private:
  engine::ImageStream& stream_;
  const engine::DumpRequest& request_;
  FreeSpace& space_;
};

constexpr char kHiddenSharedMemory[] =
    "a process has mounted over /dev/shm: what the pod's holds is not in here";

bool HidesSharedMemory(std::span<const engine::Mount> mounts, const engine::MountChanges& changes) {
  return std::ranges::any_of(mounts, [&](const engine::Mount& mount) {
    return mount.mountpoint == "/dev/shm" && changes.made.contains(mount.id);
  });
}

std::chrono::microseconds Since(steady_clock::time_point begin) {
  return std::chrono::duration_cast<std::chrono::microseconds>(steady_clock::now() - begin);
}

}  // namespace

Status CheckRunning(const ContainerFacts& facts) {
  const std::string& whole_id = facts.status.id();
  if (facts.status.state() != runtime::v1::ContainerState::CONTAINER_RUNNING || facts.pid <= 0) {
    return FailedPrecondition("container " + whole_id + " " + StateText(facts.status.state()) +
                              "; only a running container can be checkpointed");
  }
  if (!facts.restore_phase.empty() && facts.restore_phase != PhaseText(RestorePhase::kRestored) &&
      facts.restore_phase != PhaseText(RestorePhase::kFresh)) {
    return FailedPrecondition("container " + whole_id +
                              " is not restored yet; try again when it is ready");
  }
  return OkStatus();
}

Result<ContainerFacts> DescribeRunning(Upstream& upstream, const std::string& id,
                                       const CallLimits& limits) {
  ASSIGN_OR_RETURN(ContainerFacts facts, DescribeContainer(upstream, id, limits));
  RETURN_IF_ERROR(CheckRunning(facts));
  return facts;
}

void HurryWhileStopped(engine::DumpRequest& request, archive::ArchiveWriter& writer) {
  // A tree that is to end or to stay stopped waits for the whole archive anyway.
  if (request.fate != engine::Fate::kLeaveRunning) return;
  request.stop_changed = [heard = std::move(request.stop_changed), &writer](
                             bool stands_still, std::chrono::microseconds so_far) {
    writer.Hurry(stands_still);
    if (heard) heard(stands_still, so_far);
  };
}

Result<ContainerCheckpoint> WriteArchive(const ContainerFacts& facts, const std::string& location,
                                         engine::DumpRequest request, const ArchiveRules& rules) {
  const auto begin = steady_clock::now();
  ASSIGN_OR_RETURN(const PinnedProcess pinned, PinnedProcess::Of(facts));
  FreeSpace space(location.substr(0, location.rfind('/') + 1), rules.least_free_percent);
  RETURN_IF_ERROR(space.Check());
  ASSIGN_OR_RETURN(const auto writer, archive::ArchiveWriter::Create(location, rules.compression));
  space.KeepShare(rules.part, [&writer] { return writer->disk_bytes(); });
  ASSIGN_OR_RETURN(const std::optional<UniqueFd> upper, OpenUpperFolder(facts.pid));
  LogExtent log = OpenContainerLog(facts);

  ContainerCheckpoint done;
  request.root = facts.pid;
  HurryWhileStopped(request, *writer);
  writer->StopUnless([&request] { return engine::StillWanted(request); });
  request.outside_mounts = BindDestinations(facts.spec);
  engine::MountChanges changes;
  bool is_shm_hidden = false;
  request.compare_mounts =
      [&, compare = CompareWithSpecification(facts)](
          std::span<const engine::Mount> mounts) -> Result<engine::MountChanges> {
    ASSIGN_OR_RETURN(changes, compare(mounts));
    is_shm_hidden = HidesSharedMemory(mounts, changes);
    return changes;
  };
  request.while_frozen = [&](std::span<const pid_t>) -> Status {
    // It stands still and has not ended, so what was seized by its number is its tree.
    RETURN_IF_ERROR(pinned.StillThere());
    RETURN_IF_ERROR(WriteTmpfsMounts(facts.pid, *request.outside_mounts, changes, writer->images(),
                                     done.notes));
    if (!is_shm_hidden) RETURN_IF_ERROR(WriteSharedMemory(facts, *writer));
    if (is_shm_hidden) done.notes.emplace_back(kHiddenSharedMemory);
    if (!upper) return SetExtent(log);
    ASSIGN_OR_RETURN(const auto member, writer->OpenMember(archive::kRootfsDiffName));
    WantedStream wanted(*member, request, space);
    ASSIGN_OR_RETURN(UserIds ids, UserIds::OfPid(facts.pid));
    ASSIGN_OR_RETURN(archive::RootfsDiffReport diff,
                     archive::WriteRootfsDiff({.upper_fd = upper->get(),
                                               .leave_out = MountDestinations(facts.spec),
                                               .ids = std::move(ids)},
                                              wanted));
    std::move(diff.notes.begin(), diff.notes.end(), std::back_inserter(done.notes));
    return SetExtent(log);
  };
  // Durable before the container is ended or left stopped.
  request.commit = [&](const engine::DumpReport& report) -> Status {
    done.notes.insert(done.notes.end(), report.notes.begin(), report.notes.end());
    if (!upper) {
      done.notes.push_back("the root file system is no overlay: its changes are not in here");
    }
    RETURN_IF_ERROR(AddMembers(facts, log, report, done.notes, *writer));
    return writer->Commit({report.stops.total, Since(begin)}, done.notes);
  };
  SpaceKeepingSink images(writer->images(), space);
  ASSIGN_OR_RETURN(done.report, engine::Dump(request, images));
  done.archive_bytes = writer->size_bytes();
  done.compression = writer->compression_report();
  done.total = Since(begin);
  return done;
}

}  // namespace stasis::cri
