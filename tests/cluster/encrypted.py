"""TLS to PostgreSQL, verified by an authority's file, under load: `encrypted.py`. Needs openssl.

The certificate is renewed under load. Then the server shows one of another authority: no session is made, pushes are
refused, and `check --online` says why in words. With the right one they are answered again, without a restart.
"""
import asyncio
import os
import shutil
import subprocess
import sys
import time

from load import HELD, Load, expect, expect_that, main, skip


def openssl(*arguments):
    subprocess.run(["openssl", *map(str, arguments)], check=True, capture_output=True)


class Authority:
    """An authority, and the certificates that it issues."""

    def __init__(self, folder):
        folder.mkdir()
        self.folder, self.file, self.key = folder, folder / "ca.pem", folder / "ca.key"
        openssl("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", 30, "-subj",
                f"/CN={folder.name}", "-keyout", self.key, "-out", self.file)

    def install(self, server):
        """Issues a certificate for a server's address; new connections meet it."""
        key, request, cert, names = (self.folder / name for name in ("server.key", "server.csr", "server.crt", "names"))
        names.write_text(f"subjectAltName = IP:{server.host}\n")
        openssl("req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-subj", "/CN=pg", "-keyout", key,
                "-out", request)
        openssl("x509", "-req", "-in", request, "-CA", self.file, "-CAkey", self.key, "-CAcreateserial", "-days", 30,
                "-extfile", names, "-out", cert)
        owner = server.path("data").stat()
        for source, name in ((cert, "data/server.crt"), (key, "data/server.key")):
            target = server.path(name)
            target.write_bytes(source.read_bytes())
            target.chmod(0o600)
            if os.geteuid() == 0:
                os.chown(target, owner.st_uid, owner.st_gid)
        server.set("ssl", "on")


class Encrypted(Load):
    def prepare(self):
        super().prepare()
        self.authority, self.other = Authority(self.folder / "authority"), Authority(self.folder / "other")
        self.authority.install(self.server)
        while self.server.sql("SHOW ssl") != "on":
            time.sleep(0.02)

    def queue(self):
        return super().queue().replace('tls = "off"', f'tls = {{ ca = "{self.authority.file}" }}')

    async def change(self, authority):
        """Another certificate, which all sessions meet; the moment."""
        await asyncio.to_thread(authority.install, self.server)
        await asyncio.sleep(0.2)
        await asyncio.to_thread(self.server.each_session, "pg_terminate_backend")
        return time.monotonic()

    async def is_answered(self, checks, name, since):
        gap = await self.first_answer(since, 60)
        print(f"{name}: first 200 {gap or -1:.2f} s after it", flush=True)
        checks.run(f"{name}: pushes are answered", lambda: expect_that(gap is not None, "none in 60 s"))
        await self.load(1.0)

    async def meet(self, checks):
        await self.load(1.0)
        sessions = "SELECT DISTINCT ssl FROM pg_stat_ssl JOIN pg_stat_activity USING (pid) WHERE usename = 'wxrelay'"
        found = await asyncio.to_thread(self.server.sql, sessions)
        checks.run("every session is encrypted", lambda: expect(found, "t", "pg_stat_ssl"))
        await self.is_answered(checks, "the certificate is renewed", await self.change(self.authority))
        changed = await self.change(self.other)
        await self.load(HELD + 1.0)
        # A try that began before the sessions were ended may have been answered.
        early = [entry for entry in self.sender.answers(changed) if entry[0] > changed]
        checks.run("another authority: no push is answered", lambda: expect(len(early), 0, "answered"))
        command = [self.arguments.binary, "check", "--online", "-c", self.config]
        said = await asyncio.to_thread(subprocess.run, command, capture_output=True, text=True)
        for part in ("authority that is not trusted", "queue.tls.ca"):
            checks.run(f"another authority: check --online says `{part}`",
                       lambda part=part: expect_that(said.returncode == 1 and part in said.stdout, said.stdout + said.stderr))
        await self.is_answered(checks, "the right certificate again", await self.change(self.authority))


if __name__ == "__main__":
    sys.exit(main(Encrypted, __doc__) if shutil.which("openssl") else skip("openssl is not installed"))
