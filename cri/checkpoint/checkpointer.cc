#include "cri/checkpoint/checkpointer.h"

#include <algorithm>
#include <optional>
#include <utility>

#include "archive/rootfs_diff.h"
#include "cri/checkpoint/members.h"
#include "cri/checkpoint/upper_folder.h"
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

std::string Microseconds(std::chrono::microseconds time) { return std::to_string(time.count()); }

}  // namespace

void Checkpointer::AddTo(MethodTable& table) {
  table.handlers["/runtime.v1.RuntimeService/CheckpointContainer"] =
      [this](const IncomingCall& call) { return CheckpointContainer(call); };
}

Reply Checkpointer::CheckpointContainer(const IncomingCall& call) {
  runtime::v1::CheckpointContainerRequest request;
  Status status = Parse(call.request, request);
  if (status.ok()) status = Checkpoint(request, {Deadline(call, request), call.stop});
  if (!status.ok()) {
    log::Error("container not checkpointed",
               {{"container", request.container_id()}, {"reason", ToText(status)}});
  }
  Reply reply;
  reply.status = ToGrpc(status);
  if (const auto empty = Serialize(runtime::v1::CheckpointContainerResponse()); empty.ok()) {
    reply.message = *empty;
  }
  return reply;
}

Status Checkpointer::Checkpoint(const runtime::v1::CheckpointContainerRequest& request,
                                const CallLimits& limits) {
  if (!request.location().starts_with('/')) {
    return InvalidArgument("the location '" + request.location() + "' is not an absolute path");
  }
  ASSIGN_OR_RETURN(const ContainerFacts found,
                   DescribeContainer(upstream_, request.container_id(), limits));
  // The runtime may have been given a beginning of the id; what it answers has all of it.
  ASSIGN_OR_RETURN(const KeyedLocks::Guard guard, locks_.Take(found.status.id(), limits));
  ASSIGN_OR_RETURN(const ContainerFacts facts,
                   DescribeContainer(upstream_, found.status.id(), limits));
  if (facts.status.state() != runtime::v1::ContainerState::CONTAINER_RUNNING || facts.pid <= 0) {
    return FailedPrecondition("container " + facts.status.id() +
                              " does not run; only a running container can be checkpointed");
  }
  if (const auto record = records_.Find(facts.status.id());
      record && record->phase != RestorePhase::kRestored) {
    return FailedPrecondition("container " + facts.status.id() + " is not restored yet");
  }
  return Write(facts, request.location(), limits);
}

Status Checkpointer::Write(const ContainerFacts& facts, const std::string& location,
                           const CallLimits& limits) {
  const auto begin = steady_clock::now();
  ASSIGN_OR_RETURN(const auto writer, archive::ArchiveWriter::Create(location));
  ASSIGN_OR_RETURN(const std::optional<UniqueFd> upper, OpenUpperFolder(facts.pid));

  LogExtent log = OpenContainerLog(facts);

  std::vector<std::string> notes;
  engine::DumpRequest request;
  request.root = facts.pid;
  request.stop = limits.stop;
  request.deadline = Steady(limits.deadline);
  request.while_frozen = [&]() -> Status {
    if (!upper) return SetExtent(log);
    ASSIGN_OR_RETURN(const auto member, writer->OpenMember(archive::kRootfsDiffName));
    ASSIGN_OR_RETURN(
        archive::RootfsDiffReport diff,
        archive::WriteRootfsDiff({upper->get(), MountDestinations(facts.spec)}, *member));
    std::move(diff.notes.begin(), diff.notes.end(), std::back_inserter(notes));
    return SetExtent(log);
  };
  // This thread is the call's own for its whole life, as the tracer has to be.
  ASSIGN_OR_RETURN(const engine::DumpReport report, engine::Dump(request, writer->images()));
  notes.insert(notes.end(), report.notes.begin(), report.notes.end());
  if (!upper) notes.push_back("the root file system is no overlay: its changes are not in here");

  RETURN_IF_ERROR(AddMembers(facts, log, report, notes, *writer));
  const auto total =
      std::chrono::duration_cast<std::chrono::microseconds>(steady_clock::now() - begin);
  RETURN_IF_ERROR(writer->Commit({report.frozen, total}, notes));
  log::Info("container checkpointed", {{"container", facts.status.id()},
                                       {"location", location},
                                       {"processes", std::to_string(report.processes)},
                                       {"pages", std::to_string(report.pages_written)},
                                       {"bytes", std::to_string(writer->size_bytes())},
                                       {"frozen_us", Microseconds(report.frozen)},
                                       {"total_us", Microseconds(total)}});
  return OkStatus();
}

}  // namespace stasis::cri
