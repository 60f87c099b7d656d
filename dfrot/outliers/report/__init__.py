"""The report of a measurement: HTML, SVG and PNG, written without any library."""
