#include "archive/registry.h"

#include <cpprest/filestream.h>
#include <cpprest/http_client.h>

#include <chrono>
#include <utility>

#include "archive/json_fields.h"
#include "archive/member_name.h"
#include "archive/registry_auth.h"

namespace stasis::archive {
namespace {

namespace http = web::http;

constexpr auto kTimeout = std::chrono::seconds(60);  // without any progress
constexpr std::size_t kMaxAnswer = std::size_t{64} << 10;

/// What is uploaded: text, or the archive's file.
struct Body {
  std::string media_type;
  std::string text;
  const Archive* archive = nullptr;
  std::uint64_t size = 0;
};

bool IsLoopback(const std::string& host) {
  return host == "localhost" || host.starts_with("127.") || host == "[::1]" || host == "::1";
}

/// The first error of a registry's answer: {"errors":[{"code":…,"message":…}]}.
std::string Reason(http::http_response& response) {
  std::string text = response.extract_utf8string(/*ignore_content_type=*/true).get();
  if (text.size() > kMaxAnswer) text.resize(kMaxAnswer);
  const Result<nlohmann::json> answer = ParseObject(text, "answer");
  if (!answer.ok()) return "";
  for (const nlohmann::json& error : ArrayField(*answer, "errors")) {
    return ": " + Printable(TextField(error, "code") + " " + TextField(error, "message"));
  }
  return "";
}

Status Refusal(http::http_response response, const std::string& what) {
  const int code = response.status_code();
  const std::string text = what + ": the registry answers " + std::to_string(code) + " " +
                           response.reason_phrase() + Reason(response);
  if (code == 401 || code == 403) {
    return PermissionDenied(text + "; log in to it and name the auth file (--authfile)");
  }
  if (code == 404) return NotFound(text);
  if (code == 413 || code == 507 || code == 429) return ResourceExhausted(text);
  return code >= 500 ? Unavailable(text) : InvalidArgument(text);
}

class Pusher {
 public:
  Pusher(const ImageReference& reference, const PushOptions& options)
      : reference_(reference), options_(options) {}

  Result<PushReport> Run(const Archive& archive, const CheckpointImage& image) {
    ASSIGN_OR_RETURN(credentials_, FindCredentials(options_.auth_file, reference_));
    base_ = web::uri(Scheme() + "://" + Host());
    total_ = image.layer_size + image.config.size() + image.manifest.size();
    const Body layer = {.media_type = "application/octet-stream",
                        .text = {},
                        .archive = &archive,
                        .size = image.layer_size};
    RETURN_IF_ERROR(PushBlob(image.layer_digest, layer));
    RETURN_IF_ERROR(
        PushBlob(image.config_digest, TextBody("application/octet-stream", image.config)));
    http::http_request put(http::methods::PUT);
    put.set_request_uri("/v2/" + reference_.repository + "/manifests/" + reference_.tag);
    ASSIGN_OR_RETURN(http::http_response answer,
                     Send(put, TextBody(std::string(kManifestMediaType), image.manifest)));
    if (answer.status_code() != http::status_codes::Created) {
      return Refusal(answer, "push the manifest of " + reference_.Text());
    }
    report_.manifest_digest = image.manifest_digest;
    return report_;
  }

 private:
  static Body TextBody(std::string media_type, const std::string& text) {
    return {
        .media_type = std::move(media_type), .text = text, .archive = nullptr, .size = text.size()};
  }

  /// docker.io is a name, not the host that serves it.
  std::string Host() const {
    return reference_.registry == "docker.io" ? "registry-1.docker.io" : reference_.registry;
  }

  std::string Scheme() const {
    const std::string host = web::uri("http://" + Host()).host();
    return options_.plain_http || IsLoopback(host) ? "http" : "https";
  }

  Status PushBlob(const std::string& digest, const Body& body) {
    const std::string blobs = "/v2/" + reference_.repository + "/blobs/";
    http::http_request head(http::methods::HEAD);
    head.set_request_uri(blobs + digest);
    ASSIGN_OR_RETURN(const http::http_response there, Send(head, {}));
    if (there.status_code() == http::status_codes::OK) {
      Progress(body.size);
      return OkStatus();
    }
    http::http_request post(http::methods::POST);
    post.set_request_uri(blobs + "uploads/");
    ASSIGN_OR_RETURN(const http::http_response started, Send(post, {}));
    if (started.status_code() != http::status_codes::Accepted) {
      return Refusal(started, "begin an upload to " + reference_.Text());
    }
    ASSIGN_OR_RETURN(const web::uri location, UploadLocation(started, digest));
    http::http_request put(http::methods::PUT);
    put.set_request_uri(location);
    ASSIGN_OR_RETURN(const http::http_response done, Send(put, body));
    if (done.status_code() != http::status_codes::Created) {
      return Refusal(done, "upload " + digest + " to " + reference_.Text());
    }
    report_.uploaded_bytes += body.size;
    Progress(body.size);
    return OkStatus();
  }

  /// Where the content goes: Location, which may be on another host and may have a query already.
  Result<web::uri> UploadLocation(const http::http_response& started, const std::string& digest) {
    const auto found = started.headers().find("Location");
    if (found == started.headers().end() || !web::uri::validate(found->second)) {
      return InvalidArgument("the registry of " + reference_.Text() + " gives no upload location");
    }
    return web::uri_builder(base_.resolve_uri(found->second))
        .append_query("digest", digest)
        .to_uri();
  }

  void Progress(std::uint64_t bytes) {
    done_ += bytes;
    if (options_.progress) options_.progress(done_, total_);
  }

  /// Sends `request`, and once more with credentials when the registry asks for them.
  Result<http::http_response> Send(const http::http_request& request, const Body& body) {
    ASSIGN_OR_RETURN(http::http_response answer, SendOnce(request, body));
    if (answer.status_code() != http::status_codes::Unauthorized) return answer;
    const auto header = answer.headers().find("WWW-Authenticate");
    if (header == answer.headers().end()) return answer;
    ASSIGN_OR_RETURN(std::string authorization, Authorize(ParseChallenge(header->second)));
    if (authorization.empty() || authorization == authorization_) return answer;
    authorization_ = std::move(authorization);
    return SendOnce(request, body);
  }

  Result<http::http_response> SendOnce(const http::http_request& request, const Body& body) {
    // A fresh request each time: the body of the last one is spent.
    const web::uri uri = base_.resolve_uri(request.request_uri().to_string());
    http::http_request fresh(request.method());
    fresh.set_request_uri(uri.resource());
    // Credentials are the registry's alone: an upload location elsewhere carries its own signature.
    if (!authorization_.empty() && uri.authority() == base_.authority()) {
      fresh.headers().add("Authorization", authorization_);
    }
    if (body.archive != nullptr) {
      // Read from the file piece by piece, by a descriptor of its own.
      const std::string path = "/proc/self/fd/" + std::to_string(body.archive->file_fd());
      fresh.set_body(concurrency::streams::fstream::open_istream(path).get(), body.size,
                     body.media_type);
    } else if (request.method() != http::methods::HEAD) {
      fresh.set_body(body.text, body.media_type);
    }
    return Exchange(uri.authority(), fresh);
  }

  /// cpprestsdk throws; nothing of that leaves this function.
  Result<http::http_response> Exchange(const web::uri& host, const http::http_request& request) {
    http::client::http_client_config config;
    config.set_timeout(kTimeout);
    config.set_max_redirects(0);  // a streamed body cannot be sent twice, nor credentials elsewhere
    try {
      http::client::http_client client(host, config);
      return client.request(request, ended_.get_token()).get();
    } catch (const std::exception& error) {
      if (options_.stop.stop_requested()) return Cancelled("nobody waits for the push any more");
      return Unavailable("reach the registry at " + host.to_string() + ": " + error.what());
    }
  }

  /// The Authorization header that `challenge` asks for; empty when we have nothing to answer with.
  Result<std::string> Authorize(const Challenge& challenge) {
    if (challenge.scheme == "basic") {
      return credentials_ ? BasicAuthorization(*credentials_) : std::string();
    }
    if (challenge.scheme != "bearer") return std::string();
    const auto realm = challenge.parameters.find("realm");
    if (realm == challenge.parameters.end() || !web::uri::validate(realm->second)) {
      return InvalidArgument("the registry asks for a token, but does not say from where");
    }
    web::uri_builder uri{web::uri(realm->second)};
    if (uri.scheme() != "https" && Scheme() != "http") {
      return PermissionDenied(
          "the registry asks for credentials over plain http; they are not sent");
    }
    if (const auto service = challenge.parameters.find("service");
        service != challenge.parameters.end()) {
      uri.append_query("service", service->second);
    }
    uri.append_query("scope", "repository:" + reference_.repository + ":pull,push");
    http::http_request get(http::methods::GET);
    get.set_request_uri(uri.to_uri().resource());
    if (credentials_) get.headers().add("Authorization", BasicAuthorization(*credentials_));
    ASSIGN_OR_RETURN(http::http_response answer, Exchange(uri.to_uri().authority(), get));
    if (answer.status_code() != http::status_codes::OK) {
      return Refusal(answer, "get a token for " + reference_.Text());
    }
    const std::string text = answer.extract_utf8string(/*ignore_content_type=*/true).get();
    ASSIGN_OR_RETURN(const nlohmann::json token, ParseObject(text, "the registry's token"));
    const std::string value = TextField(token, "token");
    return "Bearer " + (value.empty() ? TextField(token, "access_token") : value);
  }

  const ImageReference& reference_;
  const PushOptions& options_;
  web::uri base_;
  std::optional<Credentials> credentials_;
  std::string authorization_;
  std::uint64_t done_ = 0;
  std::uint64_t total_ = 0;
  PushReport report_;
  // Of the whole push: what is read of an answer is under way after its request.
  pplx::cancellation_token_source ended_;
  const std::stop_callback<std::function<void()>> end_{options_.stop, [this] { ended_.cancel(); }};
};

}  // namespace

Result<PushReport> PushImage(const Archive& archive, const CheckpointImage& image,
                             const ImageReference& reference, const PushOptions& options) {
  try {
    return Pusher(reference, options).Run(archive, image);
  } catch (
      const std::exception& error) {  // cpprestsdk: an address that is none, an answer cut short
    if (options.stop.stop_requested()) return Cancelled("nobody waits for the push any more");
    return Unavailable("push to " + reference.Text() + ": " + error.what());
  }
}

}  // namespace stasis::archive
