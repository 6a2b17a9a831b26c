"""The pages of the dead letters: causes, lists, one letter, and the actions on letters."""

from collections.abc import Collection
from typing import Any
from urllib.parse import urlencode

from aiohttp import web

from worker.ui.jobs import Job, Jobs
from worker.ui.letters import Found, Letters, headers, properties
from worker.ui.marked import marked
from worker.ui.templating import Frame
from worker.ui.watching import Watching

# Letters on one page of a list.
PAGE = 50
ACTIONS = {"replay": "Send again", "purge": "Delete"}


class LetterPages:
    """The pages of the dead letters.

    Args:
        frame, watching, jobs: see :class:`worker.ui.pages.Pages`.
    """

    def __init__(self, letters: Letters, frame: Frame, watching: Watching, jobs: Jobs) -> None:
        self._letters = letters
        self._frame = frame
        self._watching = watching
        self._jobs = jobs

    def routes(self) -> list[web.RouteDef]:
        """The paths."""
        return [
            web.get("/letters", self.causes),
            web.post("/letters/look", self.look),
            web.get("/letters/list", self.listed),
            web.get("/letters/act", self.ask),
            web.post("/letters/act", self.act),
            web.get("/letters/{id}", self.letter),
            web.post("/letters/{id}/replay", self.replay_edited),
        ]

    async def causes(self, _: web.Request) -> web.Response:
        """The letters by cause, as of the last look. Looks at none."""
        queue = self._watching.seen.view.queue
        count = None if queue.error is not None else queue.dead_letters
        return self._frame.page("causes.html", here="/letters", look=self._letters.last, count=count)

    async def look(self, request: web.Request) -> web.Response:
        """Look at all letters, and go on with the page that asked for it."""
        back = str((await request.post()).get("back", ""))
        back = back if back.startswith("/letters") else "/letters"
        job = await self._jobs.start("Looking at the dead letters", back, self._letters.look)
        raise web.HTTPSeeOther(job.page)

    async def listed(self, request: web.Request) -> web.Response:
        """The letters of a cause, or with a text, the newest first."""
        cause_id, text = request.query.get("cause", ""), request.query.get("text", "").strip()
        page = request.query.get("page", "")
        number = int(page) if page.isdecimal() and len(page) < 9 else 0
        look = self._letters.last
        found = [] if look is None else look.matching(cause_id, text)
        return self._frame.page(
            "list.html",
            here="/letters",
            look=look,
            cause=None if look is None else look.cause(cause_id),
            cause_id=cause_id,
            text=text,
            found=found[number * PAGE : (number + 1) * PAGE],
            matching=sum(each.count for each in found),
            page=number,
            pages=-(-len(found) // PAGE),
            query=lambda page: urlencode({"cause": cause_id, "text": text, "page": page}),
            act=lambda action: urlencode({"action": action, "cause": cause_id, "text": text, "all": 1}),
            here_again=f"/letters/list?{urlencode({'cause': cause_id, 'text': text})}",
        )

    async def letter(self, request: web.Request) -> web.Response:
        """One letter."""
        return self._letter(request.match_info["id"])

    async def ask(self, request: web.Request) -> web.Response:
        """How many letters an action means, before it acts."""
        action, chosen = request.query.get("action", ""), self._chosen(request.query)
        if action not in ACTIONS or self._letters.last is None:
            raise web.HTTPNotFound
        return self._frame.page(
            "ask.html",
            here="/letters",
            action=action,
            verb=ACTIONS[action],
            count=sum(each.count for each in chosen),
            ids=request.query.getall("id", []),
            all=request.query.get("all", ""),
            cause_id=request.query.get("cause", ""),
            cause=self._letters.last.cause(request.query.get("cause", "")),
            text=request.query.get("text", ""),
            look=self._letters.last,
        )

    async def act(self, request: web.Request) -> web.Response:
        """Send the chosen letters again, or delete them."""
        form = await request.post()
        action, ids = form.get("action"), {each.summary.id for each in self._chosen(form)}
        if action == "purge" and ids:
            job = await self._jobs.start(
                "Deleting letters", "/letters", lambda job: self._letters.purge(job, ids)
            )
        elif action == "replay" and ids:
            job = await self._replay(ids)
        else:
            raise web.HTTPBadRequest(text="No letter was chosen.")
        raise web.HTTPSeeOther(job.page)

    async def replay_edited(self, request: web.Request) -> web.Response:
        """Send one letter again, with the body of the form if that was changed."""
        form = await request.post()
        found = self._found(request.match_info["id"])
        body = form.get("body")
        if found is None or not isinstance(body, str):
            return self._letter(request.match_info["id"])
        # Forms write line breaks as CRLF.
        body = body.replace("\r\n", "\n")
        message = self._letters.read(found)
        before = None if message is None else marked(message.body, "").whole
        unchanged = before is not None and body == before.replace("\r\n", "\n")
        change = None if unchanged else body.encode("utf-8", "surrogatepass")
        job = await self._replay({found.summary.id}, change, check="unchecked" not in form)
        if job.error is not None and self._found(found.summary.id) is not None:
            return self._letter(found.summary.id, edited=body, error=job.error)
        raise web.HTTPSeeOther(job.page)

    def _letter(self, letter_id: str, *, edited: str | None = None, error: str | None = None) -> web.Response:
        found, look = self._found(letter_id), self._letters.last
        if found is None or look is None:
            return self._frame.page("gone.html", 404, here="/letters", id=letter_id)
        message = self._letters.read(found)
        shown = explanation = None
        if message is not None:
            explanation = self._letters.explained(message, found.summary)
            shown = marked(message.body, found.summary.error, explanation.problems or ())
        return self._frame.page(
            "letter.html",
            here="/letters",
            found=found,
            letter=found.summary,
            cause=look.cause(found.summary.cause),
            look=look,
            message=message,
            properties={} if message is None else properties(message),
            headers={} if message is None else headers(message),
            shown=shown,
            explanation=explanation,
            edited=edited,
            error=error,
        )

    def _found(self, letter_id: str) -> Found | None:
        look = self._letters.last
        return None if look is None else look.letters.get(letter_id)

    def _chosen(self, form: Any) -> Collection[Found]:
        """The letters that a form means."""
        look = self._letters.last
        if look is None:
            return ()
        ids = [str(each) for each in form.getall("id", [])]
        cause, text = str(form.get("cause", "")), str(form.get("text", ""))
        return look.matching(cause, text, ids) if ids or cause or text or form.get("all") else ()

    async def _replay(self, ids: Collection[str], change: bytes | None = None, check: bool = True) -> Job:
        return await self._jobs.start(
            "Sending letters again", "/letters", lambda job: self._letters.replay(job, ids, change, check)
        )
