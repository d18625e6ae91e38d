// The whole shim between a typed client and a fake runtime, with one checkpoint image to be restored.
#pragma once

#include <fcntl.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <memory>
#include <string>

#include "cri/shim.h"
#include "unit/cri/fake_containerd.h"
#include "unit/cri/generic_client.h"
#include "unit/cri/temporary_directory.h"
#include "unit/support/matchers.h"

namespace stasis::testing {

class ShimTest : public ::testing::Test {
 protected:
  void SetUp() override {
    // In the shape that containerd unpacks an image to: the archive's members in a folder.
    std::filesystem::create_directories(directory_ / "view/checkpoint");
    Write("view/config.dump",
          R"({"rootfsImageRef":"reg.test/app@sha256:1","rootfsImageName":"reg.test/app:1"})");
    Write("view/spec.dump", "{}");
    Write("view/checkpoint/inventory.img", "no inventory");
    runtime_.view_source = directory_ / "view";
    runtime_.pid = ::getpid();
    AddImage("reg.test/checkpoint:1", "sha256:check", "sha256:manifest");
    runtime_.blobs["sha256:manifest"] =
        R"({"annotations":{"org.criu.checkpoint.container.name":"app"}})";
    AddImage("reg.test/app:1", "sha256:base", "sha256:plain");
    runtime_.blobs["sha256:plain"] = R"({"config":{}})";
    StartShim();
  }

  void StartShim() {
    shim_.reset();
    Result<std::unique_ptr<cri::Shim>> shim = cri::Shim::Start({
        .listen = "unix://" + directory_ / "shim",
        .runtime_endpoint = "unix://" + directory_ / "runtime",
        .state_dir = directory_ / "state",
        .restore = {.placeholder = "/bin/true", .page_server = "/bin/true"},
    });
    ASSERT_THAT(shim, IsOk());
    shim_ = std::move(*shim);
    channel_ = ChannelTo(directory_ / "shim");
    containers_ = v1::RuntimeService::NewStub(channel_);
    images_ = v1::ImageService::NewStub(channel_);
  }

  void Write(const std::string& name, const std::string& text) {
    std::ofstream(directory_ / name) << text;
  }
  std::string Read(const std::string& name) {
    std::ifstream file(directory_ / name);
    return {std::istreambuf_iterator<char>(file), {}};
  }

  void AddImage(const std::string& name, const std::string& id, const std::string& manifest) {
    runtime_.images[name] = {
        .id = id, .info = R"({"chainID":"sha256:chain","imageSpec":{}})", .manifest = manifest};
  }

  v1::CreateContainerRequest RequestFor(const std::string& image) {
    v1::CreateContainerRequest request;
    request.set_pod_sandbox_id("sandbox");
    request.mutable_sandbox_config()->mutable_metadata()->set_uid("pod-uid");
    request.mutable_sandbox_config()->set_log_directory(directory_.path());
    v1::ContainerConfig& config = *request.mutable_config();
    config.mutable_metadata()->set_name("app");
    config.mutable_image()->set_image(image);
    config.set_log_path("app.log");
    config.add_command("the-program");
    config.add_args("its-argument");
    return request;
  }

  /// The id; empty after an error, which is in status_.
  std::string Create(const v1::CreateContainerRequest& request) {
    grpc::ClientContext context;
    v1::CreateContainerResponse response;
    status_ = containers_->CreateContainer(&context, request, &response);
    return response.container_id();
  }
  grpc::Status Start(const std::string& id) {
    grpc::ClientContext context;
    v1::StartContainerRequest request;
    request.set_container_id(id);
    v1::StartContainerResponse response;
    return containers_->StartContainer(&context, request, &response);
  }
  v1::ContainerStatusResponse StatusOf(const std::string& id) {
    grpc::ClientContext context;
    v1::ContainerStatusRequest request;
    request.set_container_id(id);
    request.set_verbose(true);
    v1::ContainerStatusResponse response;
    status_ = containers_->ContainerStatus(&context, request, &response);
    return response;
  }

  TemporaryDirectory directory_;
  FakeContainerd runtime_{directory_ / "runtime"};
  std::unique_ptr<cri::Shim> shim_;
  std::shared_ptr<grpc::Channel> channel_;
  std::unique_ptr<v1::RuntimeService::Stub> containers_;
  std::unique_ptr<v1::ImageService::Stub> images_;
  grpc::Status status_;
};

}  // namespace stasis::testing
