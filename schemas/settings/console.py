"""The settings of the console and its HTTP interface, and what follows from them."""

from __future__ import annotations

from ipaddress import ip_address

from pydantic import Field
from pydantic.dataclasses import dataclass

from schemas.settings.sections import STRICT


@dataclass(frozen=True, config=STRICT)
class ConsoleSettings:
    """The console and the HTTP interface `/v1` (role `console`)."""

    port: int = Field(
        default=8420, ge=0, le=65_535, description="port of the console; 0 = `freshet up` starts none")
    host: str = Field(
        default="127.0.0.1", min_length=1,
        description="address it listens on; set `api_keys` before others can reach it")
    names: str = Field(
        default="", description="names, separated by commas, that it is reached by: requests for another are refused; "
                                "empty = localhost and the loopback addresses, or any name where it listens on another "
                                "address")
    api_keys: str = Field(
        default="", repr=False,
        description="keys, separated by commas, of which a request must bring one (`Authorization: Bearer KEY`, "
                    "`X-Api-Key`, or a browser's password); several, so that they can be changed one after the other; "
                    "empty = it asks for none; never logged; `FRESHET_CONSOLE_API_KEYS_FILE` names a file that holds "
                    "them")
    token: str = Field(
        default="", repr=False,
        description="what an operator gives the console to change something; empty = it only shows; never logged; "
                    "`FRESHET_CONSOLE_TOKEN_FILE` names a file that holds it")

    @property
    def keys(self) -> tuple[str, ...]:
        """The API keys, () = none is asked for."""
        return tuple(key for one in self.api_keys.split(",") if (key := one.strip()))

    @property
    def loopback(self) -> bool:
        """Whether it listens on this machine alone."""
        if self.host == "localhost":
            return True
        try:
            return ip_address(self.host.strip("[]")).is_loopback
        except ValueError:  # a name: where it points to is not ours to say
            return False

    @property
    def allowed(self) -> tuple[str, ...]:
        """Names that a request may be for. A page of another site must not reach the console through a name of its own
        that it points to 127.0.0.1.
        """
        if names := tuple(name for one in self.names.split(",") if (name := one.strip())):
            return names
        return ("localhost", "127.0.0.1", "[::1]") if self.loopback else ("*",)
