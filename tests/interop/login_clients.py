"""Sites that log their users in by WeChat, each with a library of PyPI as its users use it: NAME CERT KEY.

Prints `{"port": N}`. `/login` begins a login; the callback answers `hello OPENID`, or 403 with `refused`. The network
(proxy, authority) is the environment's.
"""
import json
import secrets
import socketserver
import ssl
import sys
from types import SimpleNamespace
from urllib.parse import parse_qs, urljoin
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

APP_ID, SECRET, CALLBACK_DOMAIN = "wx0123456789abcdef", "0123456789abcdef0123456789abcdef", "https://login.example.com"


class Site:
    """A site with sessions by cookie. Subclasses log in."""

    def __init__(self):
        self.sessions = {}

    def __call__(self, environ, start_response):
        cookie = environ.get("HTTP_COOKIE", "").removeprefix("session=")
        session_id = cookie if cookie in self.sessions else secrets.token_hex(16)
        session = self.sessions.setdefault(session_id, {})
        query = {key: values[-1] for key, values in parse_qs(environ.get("QUERY_STRING", "")).items()}
        headers = [("Set-Cookie", f"session={session_id}; Secure; HttpOnly; SameSite=Lax; Path=/"), ("Content-Type", "text/html; charset=utf-8")]
        status, text = "404 Not Found", ""
        if environ["PATH_INFO"] == "/login":
            status, headers = "302 Found", [*headers, ("Location", self.begin(session))]
        elif environ["PATH_INFO"] == "/callback":
            try:
                status, text = "200 OK", f"hello {self.finish(session, query)}"
            except Exception as error:  # whatever the library raises is its refusal
                status, text = "403 Forbidden", f"refused {type(error).__name__}"
        page = f'<!doctype html><p>{text}</p><img src="https://third.example.com/pixel" alt="">'.encode()
        start_response(status, [*headers, ("Content-Length", str(len(page)))])
        return [page]


class Nonces:
    """What social-auth-core keeps of its states, in memory."""

    def __init__(self):
        self.known = set()

    def use(self, *nonce):
        is_new = nonce not in self.known
        self.known.add(nonce)
        return is_new

    def consume(self, *nonce):
        is_known = nonce in self.known
        self.known.discard(nonce)
        return is_known


class SocialAuth(Site):
    """social-auth-core, backends `weixin` (website app) and `weixinapp` (official account)."""

    def __init__(self, backend, name):
        super().__init__()
        from social_core.backends.weixin import WeixinOAuth2, WeixinOAuth2APP
        from social_core.strategy import BaseStrategy

        nonces = Nonces()
        self.backend, self.name = {"weixin": WeixinOAuth2, "weixinapp": WeixinOAuth2APP}[backend], name

        class Strategy(BaseStrategy):
            def __init__(self, session, query):
                super().__init__(storage=SimpleNamespace(nonce=nonces))
                self.session, self.query = session, query

            def get_setting(self, name):
                return {"SOCIAL_AUTH_WEIXIN_KEY": APP_ID, "SOCIAL_AUTH_WEIXIN_SECRET": SECRET, "SOCIAL_AUTH_WEIXINAPP_KEY": APP_ID,
                        "SOCIAL_AUTH_WEIXINAPP_SECRET": SECRET, "SOCIAL_AUTH_PIPELINE": ["login_clients.person"]}[name]

            def request_data(self, merge=True):
                return self.query

            def request_host(self):
                return f"{name}.example.com"

            def session_get(self, name, default=None):
                return self.session.get(name, default)

            def session_set(self, name, value):
                self.session[name] = value

            def session_pop(self, name):
                return self.session.pop(name, None)

            def build_absolute_uri(self, path=None):
                return urljoin(f"https://{name}.example.com/", path or "")

            def redirect(self, url):
                return url

        self.strategy = Strategy

    def _backend(self, session, query):
        return self.backend(self.strategy(session, query), redirect_uri=f"{CALLBACK_DOMAIN}/login/{self.name}")

    def begin(self, session):
        return self._backend(session, {}).start()

    def finish(self, session, query):
        return self._backend(session, query).complete().openid


def person(response, *_, **__):
    """The only step of social-auth-core's pipeline: whom WeChat named."""
    return {"user": SimpleNamespace(openid=response["openid"]), "social": SimpleNamespace()}


class Authlib(Site):
    """authlib as a generic OAuth 2.0 client that keeps and compares the state."""

    def _client(self, **more):
        from authlib.integrations.requests_client import OAuth2Session

        return OAuth2Session(APP_ID, SECRET, redirect_uri=f"{CALLBACK_DOMAIN}/login/authlib", **more)

    def begin(self, session):
        url, session["state"] = self._client(scope="snsapi_login").create_authorization_url(
            "https://open.weixin.qq.com/connect/qrconnect", appid=APP_ID)
        return url

    def finish(self, session, query):
        from authlib.common.urls import url_encode

        answer = f"https://authlib.example.com/callback?{url_encode(list(query.items()))}"
        client = self._client(state=session.pop("state"))
        token = client.fetch_token("https://api.weixin.qq.com/sns/oauth2/access_token", method="GET",
                                   authorization_response=answer, appid=APP_ID, secret=SECRET)
        return token["openid"]


def allauth():
    """django-allauth with its own provider `weixin`; its callback URL is one method of the adapter."""
    import django
    from django.conf import settings
    from django.http import HttpResponse
    from django.urls import include, path

    settings.configure(
        SECRET_KEY=secrets.token_hex(16), ALLOWED_HOSTS=["allauth.example.com"], ROOT_URLCONF=__name__, USE_TZ=True,
        DATABASES={"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": "file:memory?mode=memory&cache=shared", "OPTIONS": {"uri": True}}},
        DEFAULT_AUTO_FIELD="django.db.models.AutoField", SECURE_PROXY_SSL_HEADER=("wsgi.url_scheme", "https"),
        INSTALLED_APPS=["django.contrib.auth", "django.contrib.contenttypes", "django.contrib.sessions", "django.contrib.messages",
                        "allauth", "allauth.account", "allauth.socialaccount", "allauth.socialaccount.providers.weixin"],
        MIDDLEWARE=["django.contrib.sessions.middleware.SessionMiddleware", "django.contrib.auth.middleware.AuthenticationMiddleware",
                    "django.contrib.messages.middleware.MessageMiddleware", "allauth.account.middleware.AccountMiddleware"],
        AUTHENTICATION_BACKENDS=["allauth.account.auth_backends.AuthenticationBackend"], SESSION_COOKIE_SECURE=True,
        TEMPLATES=[{"BACKEND": "django.template.backends.django.DjangoTemplates", "APP_DIRS": True,
                    "OPTIONS": {"context_processors": ["django.template.context_processors.request"]}}],
        SOCIALACCOUNT_PROVIDERS={"weixin": {"APPS": [{"client_id": APP_ID, "secret": SECRET}]}}, SOCIALACCOUNT_LOGIN_ON_GET=True,
        LOGIN_REDIRECT_URL="/me", ACCOUNT_EMAIL_VERIFICATION="none", SOCIALACCOUNT_AUTO_SIGNUP=True)
    django.setup()
    from allauth.socialaccount.providers.weixin.views import WeixinOAuth2Adapter
    from django.core.management import call_command

    call_command("migrate", verbosity=0)
    WeixinOAuth2Adapter.get_callback_url = lambda self, request, app: f"{CALLBACK_DOMAIN}/login/allauth"

    def me(request):
        from allauth.socialaccount.models import SocialAccount

        if not request.user.is_authenticated:
            return HttpResponse("refused", status=403)
        return HttpResponse(f"hello {SocialAccount.objects.get(user=request.user).uid}")

    global urlpatterns
    urlpatterns = [path("me", me), path("accounts/", include("allauth.urls"))]
    from django.core.wsgi import get_wsgi_application

    return get_wsgi_application()


class Server(socketserver.ThreadingMixIn, WSGIServer):
    daemon_threads = True


class Quiet(WSGIRequestHandler):
    def get_environ(self):
        return super().get_environ() | {"wsgi.url_scheme": "https", "HTTPS": "on"}

    def log_message(self, *_):
        pass


def main():
    name, cert, key = sys.argv[1:]
    sites = {"social": lambda: SocialAuth("weixin", "social"), "socialapp": lambda: SocialAuth("weixinapp", "socialapp"),
             "authlib": Authlib, "allauth": allauth}
    sys.modules.setdefault("login_clients", sys.modules["__main__"])
    server = make_server("127.0.0.1", 0, sites[name](), server_class=Server, handler_class=Quiet)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(cert, key)
    server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    print(json.dumps({"port": server.server_address[1]}), flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()
