#include "cri/checkpoint/checkpointer.h"

#include <absl/cleanup/cleanup.h>

#include <algorithm>
#include <cerrno>

#include "cri/checkpoint/container_checkpoint.h"
#include "cri/log.h"

namespace stasis::cri {
namespace {

using std::chrono::steady_clock;
using std::chrono::system_clock;

// A timeout beyond this is none: adding it to the time of day would overflow.
constexpr std::int64_t kLongestTimeoutSeconds = 365L * 24 * 3600;

system_clock::time_point Deadline(const IncomingCall& call,
                                  const runtime::v1::CheckpointContainerRequest& request) {
  if (request.timeout() <= 0) return call.context.deadline();
  const std::chrono::seconds timeout(std::min(request.timeout(), kLongestTimeoutSeconds));
  return std::min(call.context.deadline(), system_clock::now() + timeout);
}

steady_clock::time_point Steady(system_clock::time_point deadline) {
  if (deadline == system_clock::time_point::max()) return steady_clock::time_point::max();
  return steady_clock::now() + (deadline - system_clock::now());
}

/// Annotation of a pod: as --compress of stasisd, with a level up to 9. The runtime has it as it was when the pod
/// began.
constexpr const char* kCompress = "stasis.dev/compress";

std::string Microseconds(std::chrono::microseconds time) { return std::to_string(time.count()); }

}  // namespace

void Checkpointer::AddTo(MethodTable& table) {
  table.handlers["/runtime.v1.RuntimeService/CheckpointContainer"] =
      [this](const IncomingCall& call) { return CheckpointContainer(call); };
}

Reply Checkpointer::CheckpointContainer(const IncomingCall& call) {
  runtime::v1::CheckpointContainerRequest request;
  Status status = Parse(call.request, request);
  if (status.ok()) {
    const CallLimits limits = {Deadline(call, request), call.stop};
    status = Checkpoint(request.container_id(), request.location(), limits).status();
  }
  Reply reply;
  reply.status = ToGrpc(status);
  if (const auto empty = Serialize(runtime::v1::CheckpointContainerResponse()); empty.ok()) {
    reply.message = *empty;
  }
  return reply;
}

Result<ContainerCheckpoint> Checkpointer::Checkpoint(const std::string& id,
                                                     const std::string& location,
                                                     const CallLimits& limits,
                                                     const archive::ChosenCompression& chosen) {
  EventSubject of;
  Result<ContainerCheckpoint> done = Make(id, location, limits, chosen, of);
  if (!done.ok()) {
    activity_.Warn(of, "CheckpointFailed", "not checkpointed: " + Message(done.status()));
    activity_.CheckpointEnded({.failed = {{done.status().code(), 1}}});
    log::Error("container not checkpointed",
               {{"container", id}, {"reason", ToText(done.status())}});
    return done;
  }
  activity_.CheckpointEnded(
      {.succeeded = 1,
       .failed = {},
       .bytes = done->archive_bytes,
       .compression = done->compression.value_or(archive::CompressionReport{}),
       .frozen = done->report.stops.total,
       .total = done->total});
  const archive::CompressionReport compression =
      done->compression.value_or(archive::CompressionReport{.plain_bytes = done->archive_bytes});
  log::Info("container checkpointed",
            {{"container", id},
             {"location", location},
             {"processes", std::to_string(done->report.processes)},
             {"pages", std::to_string(done->report.pages().written)},
             {"bytes", std::to_string(done->archive_bytes)},
             {"plain_bytes", std::to_string(compression.plain_bytes)},
             {"compression_us",
              Microseconds(std::chrono::duration_cast<std::chrono::microseconds>(compression.cpu))},
             {"frozen_us", Microseconds(done->report.stops.total)},
             {"total_us", Microseconds(done->total)}});
  activity_.Tell(of, "Checkpointed",
                 "checkpointed: " + SizeText(done->archive_bytes) + ", frozen for " +
                     TimeText(done->report.stops.total) + " of " + TimeText(done->total) + "; " +
                     location);
  return done;
}

Result<ContainerCheckpoint> Checkpointer::Make(const std::string& id, const std::string& location,
                                               const CallLimits& limits,
                                               const archive::ChosenCompression& chosen,
                                               EventSubject& of) {
  if (!location.starts_with('/')) {
    return InvalidArgument("the location '" + location + "' is not an absolute path");
  }
  const int others = under_way_.fetch_add(1);
  const absl::Cleanup ended = [this] { --under_way_; };
  if (others >= limits_.at_once) {
    return SyscallError(EAGAIN, std::to_string(others) +
                                    " checkpoints are under way on this node, as many as "
                                    "--checkpoint-limit allows; try again later");
  }
  ASSIGN_OR_RETURN(const std::string whole_id, WholeId(id, limits));
  ASSIGN_OR_RETURN(const KeyedLocks::Guard guard, locks_.Take(whole_id, limits));
  ASSIGN_OR_RETURN(const ContainerFacts facts, DescribeContainer(upstream_, whole_id, limits));
  of = SubjectOf(facts.status.labels());
  RETURN_IF_ERROR(CheckRunning(facts));
  if (const auto record = records_.Find(facts.status.id()); record && !IsWhole(record->phase)) {
    return FailedPrecondition("container " + facts.status.id() +
                              " is not restored yet; try again when it is ready");
  }
  ASSIGN_OR_RETURN(const std::optional<archive::Compression> compression,
                   CompressionOf(facts, chosen, limits));
  return Write(facts, location, limits, compression);
}

// The runtime may be given a beginning of the id, and answers with all of it; the kubelet gives all.
Result<std::string> Checkpointer::WholeId(const std::string& id, const CallLimits& limits) {
  constexpr std::size_t kWhole = 64;  // of containerd and CRI-O
  if (id.size() >= kWhole) return id;
  ASSIGN_OR_RETURN(const ContainerFacts found, DescribeContainer(upstream_, id, limits));
  return found.status.id();
}

Result<std::optional<archive::Compression>> Checkpointer::CompressionOf(
    const ContainerFacts& facts, const archive::ChosenCompression& chosen,
    const CallLimits& limits) {
  if (chosen) return *chosen;
  if (!facts.sandbox_id.empty()) {
    runtime::v1::PodSandboxStatusRequest request;
    request.set_pod_sandbox_id(facts.sandbox_id);
    ASSIGN_OR_RETURN(const runtime::v1::PodSandboxStatusResponse pod,
                     Call(&runtime::v1::RuntimeService::Stub::PodSandboxStatus,
                          upstream_.containers(), request, limits));
    const auto& annotations = pod.status().annotations();
    if (const auto own = annotations.find(kCompress); own != annotations.end()) {
      auto compression = archive::ParseUsersCompression(own->second);
      if (compression.ok()) return compression;
      return Annotate(compression.status(), std::string("the pod's annotation ") + kCompress);
    }
  }
  return compression_.For(NamesOf(facts.status.labels()).pod_namespace);
}

Result<ContainerCheckpoint> Checkpointer::Write(
    const ContainerFacts& facts, const std::string& location, const CallLimits& limits,
    const std::optional<archive::Compression>& compression) {
  ASSIGN_OR_RETURN(const auto part, share_.Begin(location.substr(0, location.rfind('/') + 1),
                                                 NamesOf(facts.status.labels()).pod_namespace));
  const auto running = activity_.Begin({.number = 0,
                                        .of = NamesOf(facts.status.labels()),
                                        .container_id = facts.status.id(),
                                        .location = location,
                                        .started = system_clock::now()},
                                       limits.stop);
  activity_.Tell(SubjectOf(facts.status.labels()), "CheckpointStarted", "is being checkpointed");
  engine::DumpRequest request;
  request.options = options_;
  request.stop = running->stop();
  request.deadline = Steady(limits.deadline);
  running->Watch(request);
  // This thread is the call's own for its whole life, as the tracer has to be.
  Result<ContainerCheckpoint> done = WriteArchive(facts, location, request,
                                                  {.compression = compression,
                                                   .least_free_percent = limits_.least_free_percent,
                                                   .part = part.get()});
  if (part && done.ok()) part->Done(done->archive_bytes);
  return done;
}

}  // namespace stasis::cri
