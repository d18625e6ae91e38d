#include "cri/restore/restorer.h"

#include <chrono>
#include <thread>
#include <utility>

#include "cri/log.h"

namespace stasis::cri {
namespace {

constexpr auto kRecoverPause = std::chrono::seconds(1);
constexpr auto kCleanupTime = std::chrono::seconds(30);

bool IsGone(const grpc::Status& status) {
  return status.ok() || status.error_code() == grpc::StatusCode::NOT_FOUND;
}

}  // namespace

CallLimits ForCleanup() { return {.deadline = std::chrono::system_clock::now() + kCleanupTime}; }

CallLimits LimitsOf(const IncomingCall& call) { return {call.context.deadline(), call.stop}; }

EventSubject SubjectOf(const RestoredContainer& record) {
  return {
      .names = {.pod_namespace = record.pod_namespace, .pod = record.pod, .container = record.name},
      .pod_uid = record.pod_uid};
}

Reply Failed(const Status& status) {
  Reply reply;
  reply.status = ToGrpc(status);
  return reply;
}

void Restorer::AddTo(MethodTable& table) {
  const std::string service = "/runtime.v1.RuntimeService/";
  table.handlers[service + "CreateContainer"] = [this](const IncomingCall& call) {
    return CreateContainer(call);
  };
  table.handlers[service + "StartContainer"] = [this](const IncomingCall& call) {
    return StartContainer(call);
  };
  table.handlers[service + "RemoveContainer"] = [this](const IncomingCall& call) {
    return Remove(call);
  };
  table.handlers[service + "RemovePodSandbox"] = [this](const IncomingCall& call) {
    return RemoveSandbox(call);
  };
  table.filters["/runtime.v1.ImageService/PullImage"].request = [this](grpc::ByteBuffer& bytes) {
    runtime::v1::PullImageRequest request;
    if (Parse(bytes, request).ok()) credentials_.Remember(request);
  };
}

Reply Restorer::Remove(const IncomingCall& call) {
  Reply reply = upstream_.Forward(call, call.request);
  runtime::v1::RemoveContainerRequest request;
  if (IsGone(reply.status) && Parse(call.request, request).ok()) {
    if (const auto record = records_.Find(request.container_id())) Forget(*record);
  }
  return reply;
}

Reply Restorer::RemoveSandbox(const IncomingCall& call) {
  // A sandbox takes its containers along. The runtime also takes a beginning of its id.
  Reply reply = upstream_.Forward(call, call.request);
  runtime::v1::PodSandboxStatusRequest request;  // its first field is the same
  if (IsGone(reply.status) && Parse(call.request, request).ok() &&
      !request.pod_sandbox_id().empty()) {
    for (const RestoredContainer& record : records_.All()) {
      if (record.sandbox_id.starts_with(request.pod_sandbox_id())) Forget(record);
    }
  }
  return reply;
}

void Restorer::Forget(const RestoredContainer& record) {
  const Status closed = images_.Close(record.checkpoint, ForCleanup());
  if (!closed.ok()) {
    log::Warn("the view of a checkpoint image stays in the runtime, ignoring",
              {{"container", record.id}, {"reason", ToText(closed)}});
  }
  const Status removed = records_.Remove(record.id);
  if (!removed.ok()) {
    log::Warn("the record of a removed container stays, ignoring",
              {{"container", record.id}, {"reason", ToText(removed)}});
  }
}

void Restorer::Recover(const std::stop_token& stop) {
  while (!stop.stop_requested()) {
    const Status status = RecoverOnce({std::chrono::system_clock::now() + kCleanupTime, stop});
    if (status.ok()) return;
    log::Debug("the runtime does not answer yet", {{"reason", ToText(status)}});
    std::this_thread::sleep_for(kRecoverPause);
  }
}

Status Restorer::RecoverOnce(const CallLimits& limits) {
  runtime::v1::VersionRequest version;
  RETURN_IF_ERROR(
      Call(&runtime::v1::RuntimeService::Stub::Version, upstream_.containers(), version, limits)
          .status());
  for (const RestoredContainer& known : records_.All()) {
    ASSIGN_OR_RETURN(const KeyedLocks::Guard guard, locks_.Take(known.id, limits));
    const auto record = records_.Find(known.id);
    if (!record) continue;
    runtime::v1::ContainerStatusRequest request;
    request.set_container_id(record->id);
    const Status status = Call(&runtime::v1::RuntimeService::Stub::ContainerStatus,
                               upstream_.containers(), request, limits)
                              .status();
    if (status.code() == StatusCode::kNotFound) {
      Forget(*record);
    } else if (!status.ok()) {
      return status;
    } else if (record->phase == RestorePhase::kRestoring) {
      Fail(*record, Aborted("stasisd ended during the restore"));
    }
  }
  return images_.CloseForgotten(records_, limits);
}

}  // namespace stasis::cri
