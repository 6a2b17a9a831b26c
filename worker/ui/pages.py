"""The pages: the overview, a request, the examination, and jobs."""

from dataclasses import replace

from aiohttp import web

from worker.observability.redaction import without_secrets
from worker.settings import Settings
from worker.ui.history import SERIES
from worker.ui.jobs import Job, Jobs
from worker.ui.sending import example, send
from worker.ui.templating import TYPES, Frame, render, static
from worker.ui.watching import Watching


class Pages:
    """The pages of one run of the command.

    Args:
        frame: the parts that all pages share.
        watching: watches workers and queues.
        jobs: the work that pages start.
    """

    def __init__(self, settings: Settings, frame: Frame, watching: Watching, jobs: Jobs) -> None:
        self._settings = settings
        self._frame = frame
        self._watching = watching
        self._jobs = jobs
        self._doctor: Job | None = None

    def routes(self) -> list[web.RouteDef]:
        """The paths."""
        return [
            web.get("/", self.overview),
            web.get("/live", self.live),
            web.get("/static/{name}", self.file),
            web.get("/send", self.form),
            web.post("/send", self.send),
            web.get("/doctor", self.doctor),
            web.post("/doctor", self.examine),
            web.get("/jobs/{number}", self.job),
        ]

    async def overview(self, _: web.Request) -> web.Response:
        return self._frame.page(
            "overview.html", here="/", seen=self._watching.seen, last=self._watching.history.last
        )

    async def live(self, request: web.Request) -> web.Response:
        """For the script: the points after a number, and the current figures."""
        since = request.query.get("since", "")
        history, seen = self._watching.history, self._watching.seen
        shown = {
            part: render(f"{part}.html", {"seen": seen, "queue": self._settings.queue})
            for part in ("faults", "figures", "workers")
        }
        answer = {
            "last": history.last,
            "series": list(SERIES),
            "points": history.since(int(since) if since.isdecimal() and len(since) < 12 else -1),
            "shown": shown,
        }
        return web.json_response(answer)

    async def file(self, request: web.Request) -> web.Response:
        name = request.match_info["name"]
        content = static(name)
        if content is None:
            raise web.HTTPNotFound
        return web.Response(body=content, content_type=TYPES[name], charset="utf-8")

    async def form(self, _: web.Request) -> web.Response:
        return self._frame.page("send.html", here="/send", body=example(self._settings), job=None)

    async def send(self, request: web.Request) -> web.StreamResponse:
        form = await request.post()
        body = str(form.get("body", ""))
        check, wait = "unchecked" not in form, "wait" in form

        async def work(job: Job) -> None:
            await send(job, self._settings, body, check=check, wait=wait)

        job = await self._jobs.start("Sending a request", "/send", work)
        raise web.HTTPSeeOther(job.page)

    async def doctor(self, _: web.Request) -> web.Response:
        return self._frame.page("doctor.html", here="/doctor", job=self._doctor)

    async def examine(self, _: web.Request) -> web.StreamResponse:
        # The database's libraries take 35 MB, and nothing else here needs them.
        from worker.operate.doctor import examine

        async def work(job: Job) -> None:
            self._doctor = job
            async for finding in examine(self._settings):
                # It quotes errors of libraries.
                job.shown.append(replace(finding, detail=without_secrets(finding.detail)))

        if self._doctor is None or not self._doctor.running:
            await self._jobs.start("Examining", "/doctor", work)
        raise web.HTTPSeeOther("/doctor")

    async def job(self, request: web.Request) -> web.Response:
        number = request.match_info["number"]
        job = self._jobs.get(int(number)) if number.isdecimal() and len(number) < 9 else None
        if job is None:
            raise web.HTTPNotFound
        if job.goes_on and not job.running:
            raise web.HTTPSeeOther(job.goes_on)
        return self._frame.page("job.html", here=job.back, job=job)
