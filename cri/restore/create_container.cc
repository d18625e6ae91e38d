// CreateContainer for a checkpoint image: the runtime is asked for a container of the base image
// that holds the placeholder, and that is otherwise exactly what the client asked for. Nothing of
// the archive but the name of the base image has a say in it.
#include <absl/cleanup/cleanup.h>

#include <utility>

#include "archive/json_fields.h"
#include "cri/log.h"
#include "cri/restore/base_image.h"
#include "cri/restore/placeholder.h"
#include "cri/restore/restorer.h"

namespace stasis::cri {
namespace {

/// Annotation of a pod, "true": see engine::Options::clocks_may_go_back.
constexpr const char* kClocksMayGoBack = "stasis.dev/clocks-may-go-back";

/// Annotation of a pod, "true" or "false": see engine::Options::lazy_pages. Without it the agent's
/// own setting holds.
constexpr const char* kLazyPages = "stasis.dev/lazy-pages";

/// Annotation of a pod: what becomes of a container that was restored, ran and ended, when the kubelet
/// starts it again. "restore", the default: it goes on from the checkpoint once more. "fresh": its
/// program begins anew, with the base image and what the pod's spec says of it.
constexpr const char* kOnRestart = "stasis.dev/on-restart";
constexpr const char* kRestore = "restore";
constexpr const char* kFresh = "fresh";

constexpr const char* kInventory =
    "inventory.img";  // written last: without it the images are not whole

RestoredContainer RecordOf(const runtime::v1::CreateContainerRequest& request,
                           const CheckpointImage& image) {
  const runtime::v1::ContainerConfig& config = request.config();
  RestoredContainer record;
  record.sandbox_id = request.pod_sandbox_id();
  record.pod_uid = request.sandbox_config().metadata().uid();
  record.pod_namespace = request.sandbox_config().metadata().namespace_();
  record.pod = request.sandbox_config().metadata().name();
  record.name = config.metadata().name();
  record.attempt = config.metadata().attempt();
  record.image = config.image().image();
  record.user_specified_image = config.image().user_specified_image();
  record.image_ref = image.ref;
  record.image_id = image.id;
  record.command = {config.command().begin(), config.command().end()};
  record.args = {config.args().begin(), config.args().end()};
  if (!config.log_path().empty() && !request.sandbox_config().log_directory().empty()) {
    record.log_path = request.sandbox_config().log_directory() + "/" + config.log_path();
  }
  const auto& annotations = request.sandbox_config().annotations();
  const auto clocks = annotations.find(kClocksMayGoBack);
  record.clocks_may_go_back = clocks != annotations.end() && clocks->second == "true";
  return record;
}

// Whether the pod's annotation `key` is `yes`, not `no`; `otherwise` where the pod has none.
Result<bool> Chosen(const runtime::v1::PodSandboxConfig& pod, const char* key, const char* yes,
                    const char* no, bool otherwise) {
  const auto found = pod.annotations().find(key);
  if (found == pod.annotations().end()) return otherwise;
  if (found->second == yes || found->second == no) return found->second == yes;
  return InvalidArgument(std::string("the pod's annotation ") + key + " is \"" + found->second +
                         "\"; it can be \"" + no + "\" or \"" + yes + "\"");
}

void SetImage(runtime::v1::ContainerConfig& config, const BaseImage& base) {
  config.mutable_image()->set_image(base.id);
  if (!config.image().user_specified_image().empty()) {
    config.mutable_image()->set_user_specified_image(base.name);
  }
  config.mutable_image()->clear_image_ref();
}

void SetPlaceholder(runtime::v1::ContainerConfig& config, const std::string& placeholder) {
  config.clear_command();
  config.add_command(kPlaceholderPath);
  config.clear_args();
  config.add_args(kPlaceholderArgument);
  runtime::v1::Mount* mount = config.add_mounts();
  mount->set_host_path(placeholder);
  mount->set_container_path(kPlaceholderPath);
  mount->set_readonly(true);
}

std::string NameKey(const RestoredContainer& record) {
  return record.sandbox_id + "/" + record.name + "/" + std::to_string(record.attempt);
}

Result<Reply> ReplyOf(const std::string& container_id) {
  runtime::v1::CreateContainerResponse response;
  response.set_container_id(container_id);
  Reply reply;
  ASSIGN_OR_RETURN(reply.message, Serialize(response));
  return reply;
}

}  // namespace

Reply Restorer::CreateContainer(const IncomingCall& call) {
  runtime::v1::CreateContainerRequest request;
  if (!Parse(call.request, request).ok()) return upstream_.Forward(call, call.request);
  const auto image = images_.Find(request.config().image(), LimitsOf(call));
  if (!image.ok()) {
    return Failed(
        Annotate(image.status(), "is " + request.config().image().image() + " a checkpoint"));
  }
  if (!*image) return upstream_.Forward(call, call.request);
  Result<Reply> reply = CreateRestored(call, request, **image);
  if (!reply.ok()) {
    const Status status =
        Annotate(reply.status(), "create a container from the checkpoint " + (*image)->ref);
    log::Error("container not created from its checkpoint",
               {{"sandbox", request.pod_sandbox_id()},
                {"name", request.config().metadata().name()},
                {"reason", ToText(status)}});
    activity_.Warn(SubjectOf(RecordOf(request, **image)), "RestoreFailed",
                   "not restored: " + Message(status));
    return Failed(status);
  }
  return std::move(*reply);
}

Result<Reply> Restorer::CreateRestored(const IncomingCall& call,
                                       runtime::v1::CreateContainerRequest& request,
                                       const CheckpointImage& image) {
  const CallLimits limits = LimitsOf(call);
  RestoredContainer record = RecordOf(request, image);
  ASSIGN_OR_RETURN(const KeyedLocks::Guard guard, locks_.Take(NameKey(record), limits));
  ASSIGN_OR_RETURN(const std::string earlier, EarlierAnswer(record, limits));
  if (!earlier.empty()) return ReplyOf(earlier);
  const runtime::v1::PodSandboxConfig& pod = request.sandbox_config();
  ASSIGN_OR_RETURN(const bool anew, Chosen(pod, kOnRestart, kFresh, kRestore, false));
  ASSIGN_OR_RETURN(record.lazy_pages,
                   Chosen(pod, kLazyPages, "true", "false", options_.lazy_pages));
  if (anew && records_.HasRun(record.pod_uid, record.name)) record.phase = RestorePhase::kFresh;

  ASSIGN_OR_RETURN(record.checkpoint, images_.Open(image, request.pod_sandbox_id(), limits));
  absl::Cleanup close = [&, place = record.checkpoint] {
    (void)images_.Close(place, {});  // already reporting worse
  };
  const bool fresh = record.phase == RestorePhase::kFresh;
  ASSIGN_OR_RETURN(Reply reply, CreateFrom(call, request, std::move(record)));
  if (reply.status.ok() && !fresh) std::move(close).Cancel();
  return reply;
}

// A client whose call timed out sends it again. What the first one made is the answer to the
// second.
Result<std::string> Restorer::EarlierAnswer(const RestoredContainer& like,
                                            const CallLimits& limits) {
  const auto record = records_.FindByName(like.sandbox_id, like.name, like.attempt);
  if (!record ||
      (record->phase != RestorePhase::kCreated && record->phase != RestorePhase::kFresh)) {
    return std::string();
  }
  runtime::v1::ContainerStatusRequest request;
  request.set_container_id(record->id);
  const Status status = Call(&runtime::v1::RuntimeService::Stub::ContainerStatus,
                             upstream_.containers(), request, limits)
                            .status();
  if (status.ok()) return record->id;
  if (status.code() != StatusCode::kNotFound) return status;
  Forget(*record);
  return std::string();
}

Result<Reply> Restorer::CreateFrom(const IncomingCall& call,
                                   runtime::v1::CreateContainerRequest& request,
                                   RestoredContainer record) {
  const CallLimits limits = LimitsOf(call);
  ASSIGN_OR_RETURN(const auto checkpoint, archive::Archive::Open(record.checkpoint.path));
  if (!checkpoint->images().Size(kInventory).ok()) {
    return InvalidArgument("it is no whole checkpoint: checkpoint/inventory.img is missing");
  }
  // The layer of an image was compared with its digest when it was pulled; of a file nobody has.
  if (record.checkpoint.snapshot_key.empty()) {
    RETURN_IF_ERROR(archive::CheckUnaltered(*checkpoint, {}, limits.stop));
  }
  ASSIGN_OR_RETURN(const std::string text, checkpoint->Get("config.dump"));
  ASSIGN_OR_RETURN(const nlohmann::json config_dump, archive::ParseObject(text, "config.dump"));
  ASSIGN_OR_RETURN(const BaseImage base, FindOrPullBaseImage(upstream_, credentials_, config_dump,
                                                             request.sandbox_config(), limits));
  SetImage(*request.mutable_config(), base);
  if (record.phase == RestorePhase::kFresh) {
    record.checkpoint = {};
  } else {
    SetPlaceholder(*request.mutable_config(), options_.placeholder);
  }
  ASSIGN_OR_RETURN(const grpc::ByteBuffer rewritten, Serialize(request));
  Reply reply = upstream_.Forward(call, rewritten);
  if (!reply.status.ok()) return reply;

  runtime::v1::CreateContainerResponse response;
  RETURN_IF_ERROR(Parse(reply.message, response));
  record.id = response.container_id();
  const Status recorded = records_.Put(record);
  if (!recorded.ok()) {
    // Without a record, StartContainer would run the placeholder and call that a success.
    runtime::v1::RemoveContainerRequest removal;
    removal.set_container_id(record.id);
    (void)Call(&runtime::v1::RuntimeService::Stub::RemoveContainer, upstream_.containers(), removal,
               ForCleanup());
    return Annotate(recorded, "remember the container");
  }
  log::Info(record.phase == RestorePhase::kFresh ? "container begins anew after a restored one"
                                                 : "container created from its checkpoint",
            {{"container", record.id}, {"image", record.image_ref}, {"base", base.name}});
  return reply;
}

}  // namespace stasis::cri
