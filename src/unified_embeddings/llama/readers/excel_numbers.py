"""Excel's numbers as the sheet shows them: dates, percentages, leading zeros, all digits.

What lives here: a stored number and its format into text. Excel stores a date as the number of days
since the end of 1899, and only the format tells it from another number. What does not: reading the
file (`excel`).

Source of the formats: ECMA-376 part 1, 18.8.30 (numFmt) and 18.17.4.1 (dates).
"""

from __future__ import annotations

import re
from datetime import datetime, timedelta
from decimal import Decimal, InvalidOperation

_BUILTIN_FORMATS = {
    "9": "0%", "10": "0.00%",
    "14": "yyyy-mm-dd", "15": "d-mmm-yy", "16": "d-mmm", "17": "mmm-yy",
    "18": "h:mm", "19": "h:mm:ss", "20": "h:mm", "21": "h:mm:ss", "22": "yyyy-mm-dd h:mm",
    "45": "mm:ss", "46": "[h]:mm:ss", "47": "mm:ss.0",
    # In the formats of East Asian versions these are dates as well.
    **{str(number): "yyyy-mm-dd" for number in (*range(27, 32), 36, *range(50, 59))},
    **{str(number): "h:mm:ss" for number in range(32, 36)},
}  # fmt: skip
_LITERAL = re.compile(r'"[^"]*"|\\.|_.|\*.')
"""Parts of a format that are shown as they are, or only take up space."""
_ELAPSED = re.compile(r"\[(h+|m+|s+)\]", re.IGNORECASE)
_BRACKETED = re.compile(r"\[[^\]]*\]")
_PERCENT = re.compile(r"0(\.0+)?%")
_DIGITS = re.compile(r"0[0 -]*")
_PLAIN_NUMBER = re.compile(r"-?\d+(\.\d+)?")
_EXACT_DIGITS = 16
"""A decimal of more digits is a binary fraction written out, such as 0.10000000000000001."""
_LONGEST_NUMBER = 40
_LEAP_DAY_1900 = 60
"""Excel takes 1900 for a leap year: days from the 60th on are one too many."""
_LAST_DAY = 2_958_466
"""The day after 9999-12-31."""


def builtin_format(number: str) -> str:
    """Return the format that has a number instead of a code in every file; "" is a plain number."""
    return _BUILTIN_FORMATS.get(number, "")


def format_number(value: str, code: str, *, from_1904: bool) -> str:
    """Return a stored number as the sheet shows it, without loss of digits.

    Dates read as `2024-03-01`, times as `14:30:00`.

    Args:
        value: The number as it is stored, such as `45352.5`.
        code: The format's code, such as `yyyy-mm-dd`; "" is a plain number.
        from_1904: Whether days count from 1904, not from 1900.
    """
    try:
        number = Decimal(value)
    except InvalidOperation:
        return value
    if not number.is_finite() or not -400 < number.adjusted() < 400:
        return value
    plain = _plain_number(value, number)
    positive_code = code.partition(";")[0]
    shown = _LITERAL.sub("", positive_code)
    elapsed = _ELAPSED.search(shown)
    shown = _BRACKETED.sub("", shown).strip()
    if elapsed is not None:
        return _elapsed_time(number)
    if re.search(r"[ymdhs]", shown, re.IGNORECASE) and "general" not in shown.lower():
        return _date(number, shown.lower(), from_1904=from_1904) or plain
    if _PERCENT.fullmatch(shown):
        # Of the plain number: 7% is stored as 7.0000000000000007E-2.
        return f"{_without_exponent(Decimal(plain) * 100)}%"
    # The literals count here: 000\-00 and 000-00 are the same.
    unquoted = positive_code.replace("\\", "").replace('"', "")
    if _DIGITS.fullmatch(unquoted) and plain.isdecimal():
        return _fill_digits(plain, unquoted)
    return plain


def _plain_number(value: str, number: Decimal) -> str:
    """Return a number in full digits, however it is stored."""
    if _PLAIN_NUMBER.fullmatch(value) and len(value) <= _EXACT_DIGITS:
        return value
    if number == number.to_integral_value():
        return _without_exponent(number)
    return repr(float(value))


def _without_exponent(number: Decimal) -> str:
    if abs(number.adjusted()) > _LONGEST_NUMBER:
        return f"{number.normalize():E}"
    text = f"{number:f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def _elapsed_time(days: Decimal) -> str:
    """Return a duration as hours, minutes and seconds; the hours go beyond 24."""
    seconds = int((abs(days) * 86400).to_integral_value())
    minutes, seconds = divmod(seconds, 60)
    hours, minutes = divmod(minutes, 60)
    sign = "-" if days < 0 else ""
    return f"{sign}{hours:02d}:{minutes:02d}:{seconds:02d}"


def _date(days: Decimal, code: str, *, from_1904: bool) -> str | None:
    """Return a date, a time, or both, by what the format shows; None if it is out of range."""
    if not 0 <= days < _LAST_DAY:
        return None
    start = datetime(1899, 12, 30)
    if from_1904:
        start = datetime(1904, 1, 1)
    elif days < _LEAP_DAY_1900:
        start = datetime(1899, 12, 31)
    milliseconds = int((days * 86_400_000).to_integral_value())
    try:
        moment = start + timedelta(milliseconds=milliseconds)
    except OverflowError:
        return None
    shows_time = "h" in code or "s" in code
    shows_day = "y" in code or "d" in code or not shows_time
    time = moment.time().isoformat("milliseconds" if moment.microsecond else "seconds")
    if not shows_day:
        return time
    day = moment.date().isoformat()
    return f"{day} {time}" if shows_time else day


def _fill_digits(digits: str, code: str) -> str:
    """Write a whole number into a format such as 00000 or 000-00-0000."""
    padded = digits.zfill(code.count("0"))
    surplus = len(padded) - code.count("0")
    shown = [padded[:surplus]]
    position = surplus
    for character in code:
        if character == "0":
            shown.append(padded[position])
            position += 1
        else:
            shown.append(character)
    return "".join(shown)
