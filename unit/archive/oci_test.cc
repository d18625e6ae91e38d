#define _TURN_OFF_PLATFORM_STRING  // cpprestsdk's macro U would break GoogleTest
#include <arpa/inet.h>
#include <cpprest/http_client.h>
#include <cpprest/http_listener.h>
#include <sys/socket.h>

#include <cstdlib>
#include <nlohmann/json.hpp>

#include "archive/checkpoint_image.h"
#include "archive/image_reference.h"
#include "archive/oci_layout.h"
#include "archive/registry.h"
#include "archive/registry_auth.h"
#include "archive/sha256.h"
#include "unit/archive/registry_process.h"

namespace stasis::archive {
namespace {

using nlohmann::json;
using stasis::testing::IsOk;
using stasis::testing::StatusIs;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

constexpr char kContainerd[] = "unit/testdata/archives/containerd-2.1.9-criu-4.2.1-counter.tar";

struct Source {
  std::unique_ptr<Archive> archive = *Archive::Open(kContainerd);
  CheckpointImage image = *DescribeImage(*archive);
};

Result<PushReport> Push(const Source& source, const std::string& name,
                        const std::string& auth_file = "/dev/null") {
  ASSIGN_OR_RETURN(const ImageReference reference, ParseImageReference(name));
  return PushImage(*source.archive, source.image, reference,
                   {.auth_file = auth_file, .progress = {}});
}

std::string Fetch(const std::string& address, const std::string& path) {
  web::http::client::http_client client("http://" + address);
  return client.request(web::http::methods::GET, path).get().extract_utf8string(true).get();
}

/// A loopback address that was free a moment ago.
std::string FreeAddress() {
  const UniqueFd socket(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
  sockaddr_in address = {};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t length = sizeof(address);
  EXPECT_EQ(::bind(socket.get(), reinterpret_cast<sockaddr*>(&address), length), 0);
  EXPECT_EQ(::getsockname(socket.get(), reinterpret_cast<sockaddr*>(&address), &length), 0);
  return "127.0.0.1:" + std::to_string(ntohs(address.sin_port));
}

std::string EmptyAuthFile(const TempFolder& folder) {
  Spill(folder / "empty.json", "{}");
  return folder / "empty.json";
}

TEST(CheckpointImageTest, HasTheArchiveAsItsLayerAndTellsWhatItIs) {
  const Source source;
  const json manifest = json::parse(source.image.manifest);
  const json config = json::parse(source.image.config);
  const std::string digest = "sha256:" + Sha256Of(Slurp(kContainerd));
  EXPECT_EQ(manifest["layers"][0]["digest"], digest);
  EXPECT_EQ(config["rootfs"]["diff_ids"], json::array({digest}));
  EXPECT_EQ(manifest["config"]["digest"], "sha256:" + Sha256Of(source.image.config));
  EXPECT_EQ(manifest["annotations"]["org.criu.checkpoint.container.name"], "counter");
  EXPECT_EQ(manifest["annotations"]["io.kubernetes.cri-o.annotations.checkpoint.name"], "counter");
  EXPECT_EQ(manifest["annotations"]["org.criu.checkpoint.pod.namespace"], "default");
  EXPECT_EQ(config["config"]["Labels"], manifest["annotations"]);
  EXPECT_EQ(config["os"], "linux");
}

TEST(CheckpointImageTest, IsTheSameForTheSameArchive) {
  EXPECT_EQ(Source().image.manifest_digest, Source().image.manifest_digest);
}

TEST(OciLayoutTest, HoldsEveryBlobUnderItsDigest) {
  const Source source;
  const TempFolder folder;
  ASSERT_THAT(WriteOciLayout(*source.archive, source.image, "v1", folder / "layout"), IsOk());
  for (const std::string& digest :
       {source.image.layer_digest, source.image.config_digest, source.image.manifest_digest}) {
    const std::string digits = digest.substr(7);
    EXPECT_EQ(Sha256Of(Slurp(folder / ("layout/blobs/sha256/" + digits))), digits);
  }
  EXPECT_THAT(WriteOciLayout(*source.archive, source.image, "v1", folder / "layout"),
              StatusIs(StatusCode::kAlreadyExists));

  ASSERT_THAT(WriteOciLayout(*source.archive, source.image, "v1", folder / "layout.tar"), IsOk());
  const std::string unpack = "mkdir " + (folder / "b") + " && tar -xf " + (folder / "layout.tar") +
                             " -C " + (folder / "b") + " && diff -r " + (folder / "b") + " " +
                             (folder / "layout");
  EXPECT_EQ(std::system(unpack.c_str()), 0);
}

TEST(RegistryTest, TakesAnImageAndSkipsWhatItHas) {
  RegistryProcess registry;
  const Source source;
  const std::string auth = EmptyAuthFile(registry.folder());
  const Result<PushReport> first = Push(source, registry.address() + "/team/counter:v1", auth);
  ASSERT_THAT(first, IsOk());
  EXPECT_EQ(first->uploaded_bytes, source.image.layer_size + source.image.config.size());

  EXPECT_EQ(Fetch(registry.address(), "/v2/team/counter/blobs/" + source.image.layer_digest),
            Slurp(kContainerd));
  EXPECT_EQ(json::parse(Fetch(registry.address(), "/v2/team/counter/tags/list"))["tags"],
            json::array({"v1"}));
  const Result<PushReport> second = Push(source, registry.address() + "/team/counter:v2", auth);
  ASSERT_THAT(second, IsOk());
  EXPECT_EQ(second->uploaded_bytes, 0u);
}

TEST(RegistryTest, WantsCredentialsAndTakesThemFromTheAuthFile) {
  TempFolder folder;
  // bcrypt of "secret", as `htpasswd -B` makes it.
  Spill(folder / "htpasswd", "jane:$2y$05$abcdefghijklmnopqrstuuOQiyCxlgf/oeuTqixKmWdcYUh4Hjl0a\n");
  RegistryProcess registry("auth: {htpasswd: {realm: test, path: " + (folder / "htpasswd") +
                           "}}\n");
  const Source source;
  const std::string name = registry.address() + "/team/counter:v1";
  EXPECT_THAT(Push(source, name, EmptyAuthFile(folder)),
              StatusIs(StatusCode::kPermissionDenied, HasSubstr("--authfile")));
  const auto auth_file = [&](const std::string& password) {
    const std::string auth = BasicAuthorization({.user = "jane", .password = password}).substr(6);
    Spill(folder / "auth.json",
          json{{"auths", {{registry.address() + "/team", {{"auth", auth}}}}}}.dump());
    return folder / "auth.json";
  };
  EXPECT_THAT(Push(source, name, auth_file("wrong")), StatusIs(StatusCode::kPermissionDenied));
  EXPECT_THAT(Push(source, name, auth_file("secret")), IsOk());
}

TEST(RegistryTest, GetsATokenWhenTheRegistryWantsOne) {
  // A registry that has every blob, and a token service beside it.
  const std::string address = FreeAddress();
  web::http::experimental::listener::http_listener server("http://" + address);
  std::string scope;
  server.support([&](const web::http::http_request& request) {
    const auto& uri = request.relative_uri();
    web::http::http_response answer(web::http::status_codes::OK);
    if (uri.path() == "/token") {
      scope = web::uri::decode(uri.query());
      answer.set_body(R"({"token":"t0ken"})", "application/json");
    } else if (!request.headers().has("Authorization")) {
      answer.set_status_code(web::http::status_codes::Unauthorized);
      answer.headers().add("WWW-Authenticate",
                           "Bearer realm=\"http://" + address + "/token\",service=\"s\"");
    } else if (request.headers().find("Authorization")->second != "Bearer t0ken") {
      answer.set_status_code(web::http::status_codes::Forbidden);
    } else if (request.method() == web::http::methods::PUT) {
      answer.set_status_code(web::http::status_codes::Created);
    }
    request.reply(answer);
  });
  server.open().wait();
  const TempFolder folder;
  EXPECT_THAT(Push(Source(), address + "/team/counter:v1", EmptyAuthFile(folder)), IsOk());
  EXPECT_EQ(scope, "service=s&scope=repository:team/counter:pull,push");
  server.close().wait();
}

TEST(RegistryTest, SaysThatNobodyAnswers) {
  const TempFolder folder;
  EXPECT_THAT(Push(Source(), "127.0.0.1:1/a:b", EmptyAuthFile(folder)),
              StatusIs(StatusCode::kUnavailable, HasSubstr("127.0.0.1:1")));
}

TEST(RegistryAuthTest, TakesTheMostSpecialKey) {
  const TempFolder folder;
  Spill(folder / "auth.json",
        R"({"auths":{"r.example":{"auth":"YTox"},"r.example/t":{"auth":"Yjoy"}}})");
  const auto special = FindCredentials(folder / "auth.json", *ParseImageReference("r.example/t/x"));
  ASSERT_THAT(special, IsOk());
  EXPECT_EQ((*special)->user, "b");
  const auto general = FindCredentials(folder / "auth.json", *ParseImageReference("r.example/u/x"));
  EXPECT_EQ((*general)->password, "1");
  EXPECT_FALSE(
      FindCredentials(folder / "auth.json", *ParseImageReference("other.example/x"))->has_value());
  EXPECT_THAT(FindCredentials(folder / "none.json", *ParseImageReference("r.example/x")),
              StatusIs(StatusCode::kNotFound));
}

TEST(ImageReferenceTest, KnowsRegistryRepositoryAndTag) {
  for (const auto& [text, whole] : std::map<std::string, std::string>{
           {"localhost:5000/a/b:c", "localhost:5000/a/b:c"},
           {"r.example/a", "r.example/a:latest"},
           {"a:b", "docker.io/library/a:b"},
           {"team/a", "docker.io/team/a:latest"},
           {"[::1]:5000/a:b", "[::1]:5000/a:b"},
       }) {
    const Result<ImageReference> reference = ParseImageReference(text);
    ASSERT_THAT(reference, IsOk()) << text;
    EXPECT_EQ(reference->Text(), whole);
  }
  for (const char* const text : {"", "r.example/", "r.example/A", "r.example/a:", "r.example/a//b",
                                 "r.example/a@sha256:00", "r.example/a:b c", "r.example/../a"}) {
    EXPECT_THAT(ParseImageReference(text), StatusIs(StatusCode::kInvalidArgument)) << text;
  }
}

}  // namespace
}  // namespace stasis::archive
