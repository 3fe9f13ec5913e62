"""The console: pages in the project's admin that answer what happened to a row, what it waits for, and what comes next.

A page shows a *story*: the list of everything that has happened to one row, of what it waits for now, and of what is
planned. The builders (``run_story`` and others) read it with a fixed number of queries, however long the history is.
The templates only draw it. The layers below do not import the console; without ``django.contrib.admin`` it is unused.
"""
