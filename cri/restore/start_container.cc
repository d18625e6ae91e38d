// StartContainer of a container that was created from a checkpoint: the runtime starts the
// placeholder, the root file system gets the checkpoint's changes, and the placeholder becomes the
// restored tree. The answer comes when that runs.
#include <algorithm>
#include <utility>

#include "archive/rootfs_diff.h"
#include "cri/checkpoint/shared_memory.h"
#include "cri/checkpoint/tmpfs_mounts.h"
#include "cri/log.h"
#include "cri/restore/container_root.h"
#include "cri/restore/placeholder.h"
#include "cri/restore/restored_log.h"
#include "cri/restore/restorer.h"
#include "engine/memory/page_size.h"
#include "engine/restore.h"

namespace stasis::cri {
namespace {

std::chrono::steady_clock::time_point SteadyDeadline(const IncomingCall& call) {
  if (call.context.deadline() == std::chrono::system_clock::time_point::max()) {
    return std::chrono::steady_clock::time_point::max();
  }
  return std::chrono::steady_clock::now() +
         (call.context.deadline() - std::chrono::system_clock::now());
}

}  // namespace

Reply Restorer::StartContainer(const IncomingCall& call) {
  runtime::v1::StartContainerRequest request;
  if (!Parse(call.request, request).ok()) return upstream_.Forward(call, call.request);
  auto record = records_.Find(request.container_id());
  if (!record) return upstream_.Forward(call, call.request);
  const Result<KeyedLocks::Guard> guard = locks_.Take(record->id, LimitsOf(call));
  if (!guard.ok()) return Failed(guard.status());

  record = records_.Find(record->id);  // as it is now that we have it for ourselves
  if (!record || IsWhole(record->phase)) {
    return upstream_.Forward(
        call,
        call.request);  // it runs, ran, is gone or was never to be restored: the runtime says which
  }
  if (record->phase == RestorePhase::kFailed) {
    return Failed(FailedPrecondition("container " + record->id +
                                     " could not be restored: " + record->failure));
  }
  if (record->phase == RestorePhase::kRestoring) {  // we hold its lock: nobody is at it any more
    const Status reason = Aborted("stasisd ended during the restore");
    Fail(*record, reason);
    return Failed(reason);
  }
  Result<Reply> reply = StartRestored(call, *record);
  return reply.ok() ? std::move(*reply) : Failed(reply.status());
}

Result<Reply> Restorer::StartRestored(const IncomingCall& call, RestoredContainer record) {
  const Result<std::unique_ptr<archive::Archive>> checkpoint =
      archive::Archive::Open(record.checkpoint.path);
  if (!checkpoint.ok()) {
    return Annotate(checkpoint.status(), "open the checkpoint " + record.image_ref);
  }
  record.phase = RestorePhase::kRestoring;
  RETURN_IF_ERROR(Annotate(records_.Put(record), "remember that the restore begins"));
  activity_.Tell(SubjectOf(record), "RestoreStarted", "is being restored from " + record.image_ref);

  const Status logged = AppendSavedLog(**checkpoint, record.log_path);
  if (!logged.ok()) {
    log::Warn("the log from before the checkpoint is lost, ignoring",
              {{"container", record.id}, {"reason", ToText(logged)}});
  }
  Reply reply = upstream_.Forward(call, call.request);
  if (!reply.status.ok()) {
    Fail(record, FromGrpc(reply.status));
    return reply;
  }
  const Status restored =
      Annotate(FillContainer(call, record, **checkpoint), "restore " + record.image_ref);
  if (!restored.ok()) {
    Fail(record, restored);
    return restored;
  }
  record.phase = RestorePhase::kRestored;
  // Not within the call's time: it runs, and whoever asked for it may be gone.
  const Status closed = images_.Close(std::exchange(record.checkpoint, {}), ForCleanup());
  const Status recorded = records_.Put(record);
  for (const Status& status : {closed, recorded}) {
    if (!status.ok()) {
      log::Warn("a restored container runs, but leaves something behind, ignoring",
                {{"container", record.id}, {"reason", ToText(status)}});
    }
  }
  return reply;
}

Status Restorer::FillContainer(const IncomingCall& call, const RestoredContainer& record,
                               const archive::Archive& checkpoint) {
  ASSIGN_OR_RETURN(const ContainerFacts facts,
                   DescribeContainer(upstream_, record.id, LimitsOf(call)));
  if (facts.pid <= 0) return FailedPrecondition("the placeholder ended by itself");
  RETURN_IF_ERROR(Annotate(ApplyRootfs(facts, checkpoint), "the root file system"));
  RETURN_IF_ERROR(Annotate(RestoreSharedMemory(facts, checkpoint), "/dev/shm"));

  engine::RestoreRequest request;
  request.placeholder = facts.pid;
  request.options.clocks_may_go_back = record.clocks_may_go_back;
  request.options.lazy_pages = record.lazy_pages;
  request.fill_tmpfs = FillFrom(
      checkpoint.images(),
      {.devices = HasCapability(facts.spec, "CAP_MKNOD"),
       .capabilities = HasCapability(facts.spec, "CAP_SETFCAP")},
      [&](const std::string& what) {
        log::Warn("a tmpfs of the container's own lacks something of the checkpoint, ignoring",
                  {{"container", record.id}, {"what", what}});
      });
  request.placeholder_program = options_.placeholder;
  request.page_server_program = options_.page_server;
  request.stop = call.stop;
  request.deadline = SteadyDeadline(call);
  // This thread is the call's own for its whole life, as the tracer has to be.
  ASSIGN_OR_RETURN(const engine::RestoreReport report,
                   engine::Restore(request, checkpoint.images()));
  activity_.RestoreEnded({.succeeded = 1, .failed = {}, .frozen = {}, .total = report.total});
  log::Info("container restored", {{"container", record.id},
                                   {"image", record.image_ref},
                                   {"processes", std::to_string(report.processes)},
                                   {"pages", std::to_string(report.pages_restored)},
                                   {"lazy_bytes", std::to_string(report.lazy_bytes)},
                                   {"microseconds", std::to_string(report.total.count())}});
  activity_.Tell(SubjectOf(record), "Restored",
                 "restored from " + record.image_ref + ": " + std::to_string(report.processes) +
                     (report.processes == 1 ? " process, " : " processes, ") +
                     SizeText(report.pages_restored * engine::kPageBytes) + " of memory in " +
                     TimeText(report.total));
  for (const std::string& note : report.notes) {
    log::Warn("restored but for this, ignoring", {{"container", record.id}, {"what", note}});
  }
  const Status hidden = HidePlaceholder(facts.pid);
  if (!hidden.ok()) {
    log::Warn("the placeholder stays visible in the container, ignoring",
              {{"container", record.id}, {"reason", ToText(hidden)}});
  }
  return OkStatus();
}

Status Restorer::ApplyRootfs(const ContainerFacts& facts, const archive::Archive& checkpoint) {
  if (!checkpoint.Has(archive::kRootfsDiffName) && !checkpoint.Has(archive::kDeletedFilesName)) {
    return OkStatus();
  }
  ASSIGN_OR_RETURN(const UniqueFd root, OpenWritableRoot(facts.pid));
  archive::RootfsApplyRequest request;
  request.root_fd = root.get();
  request.leave_out = MountDestinations(facts.spec);
  ASSIGN_OR_RETURN(request.ids, UserIds::OfPid(facts.pid));
  // What the live container could have made itself: in a user namespace of its own nobody makes devices.
  request.allow_devices = request.ids.are_ours() && HasCapability(facts.spec, "CAP_MKNOD");
  request.allow_capabilities = HasCapability(facts.spec, "CAP_SETFCAP");
  archive::RootfsDiffReport report;
  RETURN_IF_ERROR(AsRootOf(request.ids, [&]() -> Status {
    ASSIGN_OR_RETURN(report, archive::ApplyRootfsDiff(request, checkpoint));
    return OkStatus();
  }));
  for (const std::string& note : report.notes) {
    log::Warn("the root file system lacks something of the checkpoint, ignoring",
              {{"container", facts.status.id()}, {"what", note}});
  }
  return OkStatus();
}

void Restorer::Fail(RestoredContainer record, const Status& reason) {
  activity_.RestoreEnded({.failed = {{reason.code(), 1}}});
  log::Error("container not restored", {{"container", record.id}, {"reason", ToText(reason)}});
  record.phase = RestorePhase::kFailed;
  record.failure = Message(reason);
  activity_.Warn(SubjectOf(record), "RestoreFailed", "not restored: " + record.failure);
  const CallLimits limits = ForCleanup();
  runtime::v1::StopContainerRequest request;
  request.set_container_id(record.id);  // timeout 0: SIGKILL, there is nothing to end in order
  const Status stopped = Call(&runtime::v1::RuntimeService::Stub::StopContainer,
                              upstream_.containers(), request, limits)
                             .status();
  const Status logged = AppendLine(record.log_path, "stasis: not restored: " + record.failure);
  const Status closed = images_.Close(std::exchange(record.checkpoint, {}), limits);
  const Status recorded = records_.Put(record);
  for (const Status& status : {stopped, logged, closed, recorded}) {
    if (!status.ok()) {
      log::Warn("after a failed restore, ignoring",
                {{"container", record.id}, {"reason", ToText(status)}});
    }
  }
}

}  // namespace stasis::cri
