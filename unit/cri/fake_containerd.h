// A container runtime as far as the shim asks one: CRI's two services and containerd's stores, in memory.
#pragma once

#include <grpcpp/server.h>
#include <grpcpp/server_builder.h>

#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <vector>

#include "cri/proxy/upstream.h"

namespace stasis::testing {

namespace v1 = runtime::v1;

/// Fields are read and written by the test while no call is under way.
class FakeContainerd final {
 public:
  explicit FakeContainerd(const std::string& socket) : runtime_(this), image_(this) {
    grpc::ServerBuilder builder;
    builder.AddListeningPort("unix:" + socket, grpc::InsecureServerCredentials());
    for (grpc::Service* service : std::initializer_list<grpc::Service*>{
             &runtime_, &image_, &images_, &content_, &snapshots_, &leases_}) {
      builder.RegisterService(service);
    }
    server_ = builder.BuildAndStart();
  }

  struct Image {
    std::string id;
    std::string info;      ///< Of the verbose status: chain id and configuration.
    std::string manifest;  ///< Digest that containerd knows it by.
  };
  struct Container {
    v1::CreateContainerRequest request;
    v1::ContainerState state = v1::CONTAINER_CREATED;
    int stops = 0;
  };

  std::map<std::string, Image> images;          ///< By name.
  std::map<std::string, std::string> pullable;  ///< From a name to the id that a pull makes of it.
  std::vector<v1::PullImageRequest> pulls;
  std::map<std::string, std::string> blobs;  ///< By digest.
  std::map<std::string, Container> containers;
  std::string view_source;  ///< The folder that a view of a snapshot binds.
  std::set<std::string> views;
  std::set<std::string> held;  ///< Leases.
  pid_t pid = 0;               ///< Of every running container.
  std::string log_path;

 private:
  static grpc::Status NotFound(const std::string& what) {
    return {grpc::StatusCode::NOT_FOUND, what + ": not found"};
  }

  class Runtime final : public v1::RuntimeService::Service {
   public:
    explicit Runtime(FakeContainerd* fake) : fake_(fake) {}

    grpc::Status Version(grpc::ServerContext*, const v1::VersionRequest*,
                         v1::VersionResponse* response) override {
      response->set_runtime_name("fake");
      return grpc::Status::OK;
    }
    grpc::Status PodSandboxStatus(grpc::ServerContext*, const v1::PodSandboxStatusRequest*,
                                  v1::PodSandboxStatusResponse* response) override {
      (*response->mutable_info())["info"] = R"({"snapshotter":"overlayfs"})";
      return grpc::Status::OK;
    }
    grpc::Status CreateContainer(grpc::ServerContext*, const v1::CreateContainerRequest* request,
                                 v1::CreateContainerResponse* response) override {
      const std::string id = "c0ffee" + std::to_string(fake_->containers.size());
      fake_->containers[id].request = *request;
      response->set_container_id(id);
      return grpc::Status::OK;
    }
    grpc::Status StartContainer(grpc::ServerContext*, const v1::StartContainerRequest* request,
                                v1::StartContainerResponse*) override {
      return To(request->container_id(), v1::CONTAINER_RUNNING);
    }
    grpc::Status StopContainer(grpc::ServerContext*, const v1::StopContainerRequest* request,
                               v1::StopContainerResponse*) override {
      ++fake_->containers[request->container_id()].stops;
      return To(request->container_id(), v1::CONTAINER_EXITED);
    }
    grpc::Status RemoveContainer(grpc::ServerContext*, const v1::RemoveContainerRequest* request,
                                 v1::RemoveContainerResponse*) override {
      fake_->containers.erase(request->container_id());
      return grpc::Status::OK;
    }
    grpc::Status ListContainers(grpc::ServerContext*, const v1::ListContainersRequest*,
                                v1::ListContainersResponse* response) override {
      for (const auto& [id, container] : fake_->containers) {
        v1::Container& listed = *response->add_containers();
        listed.set_id(id);
        *listed.mutable_image() = container.request.config().image();
        listed.set_image_ref("base-ref");
      }
      return grpc::Status::OK;
    }
    grpc::Status ContainerStatus(grpc::ServerContext*, const v1::ContainerStatusRequest* request,
                                 v1::ContainerStatusResponse* response) override {
      const auto found = fake_->containers.find(request->container_id());
      if (found == fake_->containers.end()) return NotFound(request->container_id());
      v1::ContainerStatus& status = *response->mutable_status();
      status.set_id(found->first);
      status.set_state(found->second.state);
      *status.mutable_image() = found->second.request.config().image();
      status.set_image_ref("base-ref");
      status.set_log_path(fake_->log_path);
      *status.mutable_mounts() = found->second.request.config().mounts();
      (*response->mutable_info())["info"] =
          R"({"runtimeType":"io.containerd.runc.v2","runtimeSpec":{"mounts":[]},"pid":)" +
          std::to_string(fake_->pid) + "}";
      return grpc::Status::OK;
    }

   private:
    grpc::Status To(const std::string& id, v1::ContainerState state) {
      const auto found = fake_->containers.find(id);
      if (found == fake_->containers.end()) return NotFound(id);
      found->second.state = state;
      return grpc::Status::OK;
    }
    FakeContainerd* fake_;
  };

  class ImageStore final : public v1::ImageService::Service {
   public:
    explicit ImageStore(FakeContainerd* fake) : fake_(fake) {}

    grpc::Status ImageStatus(grpc::ServerContext*, const v1::ImageStatusRequest* request,
                             v1::ImageStatusResponse* response) override {
      for (const auto& [name, image] : fake_->images) {
        if (request->image().image() != name && request->image().image() != image.id) continue;
        response->mutable_image()->set_id(image.id);
        response->mutable_image()->add_repo_digests(name + "@sha256:repo");
        if (request->verbose()) (*response->mutable_info())["info"] = image.info;
      }
      return grpc::Status::OK;
    }
    grpc::Status PullImage(grpc::ServerContext*, const v1::PullImageRequest* request,
                           v1::PullImageResponse*) override {
      fake_->pulls.push_back(*request);
      const auto found = fake_->pullable.find(request->image().image());
      if (found == fake_->pullable.end()) {
        return {grpc::StatusCode::UNAUTHENTICATED, "pull access denied"};
      }
      fake_->images[found->first] = {.id = found->second, .info = "{}", .manifest = ""};
      return grpc::Status::OK;
    }

   private:
    FakeContainerd* fake_;
  };

  class Images final : public containerd::services::images::v1::Images::Service {
   public:
    explicit Images(FakeContainerd* fake) : fake_(fake) {}
    grpc::Status Get(grpc::ServerContext*,
                     const containerd::services::images::v1::GetImageRequest* request,
                     containerd::services::images::v1::GetImageResponse* response) override {
      for (const auto& [name, image] : fake_->images) {
        if (image.id != request->name() || image.manifest.empty()) continue;
        response->mutable_image()->mutable_target()->set_digest(image.manifest);
        return grpc::Status::OK;
      }
      return NotFound(request->name());
    }

   private:
    FakeContainerd* fake_;
  };

  class Content final : public containerd::services::content::v1::Content::Service {
   public:
    explicit Content(FakeContainerd* fake) : fake_(fake) {}
    grpc::Status Read(
        grpc::ServerContext*, const containerd::services::content::v1::ReadContentRequest* request,
        grpc::ServerWriter<containerd::services::content::v1::ReadContentResponse>* out) override {
      const auto found = fake_->blobs.find(request->digest());
      if (found == fake_->blobs.end()) return NotFound(request->digest());
      for (const char byte : found->second) {  // the smallest pieces that there are
        containerd::services::content::v1::ReadContentResponse part;
        part.set_data(std::string(1, byte));
        out->Write(part);
      }
      return grpc::Status::OK;
    }

   private:
    FakeContainerd* fake_;
  };

  class Snapshots final : public containerd::services::snapshots::v1::Snapshots::Service {
   public:
    explicit Snapshots(FakeContainerd* fake) : fake_(fake) {}
    grpc::Status View(
        grpc::ServerContext* context,
        const containerd::services::snapshots::v1::ViewSnapshotRequest* request,
        containerd::services::snapshots::v1::ViewSnapshotResponse* response) override {
      if (!context->client_metadata().contains("containerd-lease")) return NotFound("lease");
      fake_->views.insert(request->key());
      response->add_mounts()->set_type("bind");
      response->mutable_mounts(0)->set_source(fake_->view_source);
      return grpc::Status::OK;
    }
    grpc::Status Remove(grpc::ServerContext*,
                        const containerd::services::snapshots::v1::RemoveSnapshotRequest* request,
                        google::protobuf::Empty*) override {
      return fake_->views.erase(request->key()) == 1 ? grpc::Status::OK : NotFound(request->key());
    }

   private:
    FakeContainerd* fake_;
  };

  class Leases final : public containerd::services::leases::v1::Leases::Service {
   public:
    explicit Leases(FakeContainerd* fake) : fake_(fake) {}
    grpc::Status Create(grpc::ServerContext*,
                        const containerd::services::leases::v1::CreateRequest* request,
                        containerd::services::leases::v1::CreateResponse*) override {
      fake_->held.insert(request->id());
      return grpc::Status::OK;
    }
    grpc::Status Delete(grpc::ServerContext*,
                        const containerd::services::leases::v1::DeleteRequest* request,
                        google::protobuf::Empty*) override {
      return fake_->held.erase(request->id()) == 1 ? grpc::Status::OK : NotFound(request->id());
    }
    grpc::Status List(grpc::ServerContext*, const containerd::services::leases::v1::ListRequest*,
                      containerd::services::leases::v1::ListResponse* response) override {
      for (const std::string& id : fake_->held) {
        auto* lease = response->add_leases();
        lease->set_id(id);
        (*lease->mutable_labels())["stasis/checkpoint-view"] = "overlayfs";
      }
      return grpc::Status::OK;
    }

   private:
    FakeContainerd* fake_;
  };

  Runtime runtime_;
  ImageStore image_;
  Images images_{this};
  Content content_{this};
  Snapshots snapshots_{this};
  Leases leases_{this};
  std::unique_ptr<grpc::Server> server_;
};

}  // namespace stasis::testing
