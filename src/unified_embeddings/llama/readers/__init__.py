"""Files of many types into their text: everything that is in them, as it is written."""
