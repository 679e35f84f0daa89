#!/usr/bin/env python3
"""The page to chat on, in Chromium.

    test_page.py                       the tests
    test_page.py --picture OUT.png     draws the picture of the folder's README, with the model that comes with the program
"""
import os
import sys
import tempfile
import unittest

import scripted_model as script
from browser import Browser
from harness import Server

HELLO = "".join(script.HELLO)
DONE = "document.querySelector('#send').textContent === 'Send' && !running"


def first(text):
    """Options with which answers start with this."""
    return "--logit-bias", f"{script.token(text)}:30"


class Page(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.browser = Browser().__enter__()

    @classmethod
    def tearDownClass(cls):
        cls.browser.__exit__()

    def tearDown(self):
        self.assertEqual(self.browser.errors, [])

    def ask(self, text):
        self.browser.run("document.querySelector('#text').focus()")
        self.browser.type(text)
        self.browser.key("Enter", 13)

    def test_conversation(self):
        with Server(*first(script.THOUGHTS[0])) as server:
            b = self.browser
            b.open(server.url)
            b.until("document.title === 'scripted'")
            self.ask("Say <b>hello</b>.")
            b.until("document.querySelectorAll('.answer').length === 1 && " + DONE)
            self.assertEqual(b.run("document.querySelector('.user').textContent"), "Say <b>hello</b>.")
            self.assertEqual(b.run("document.querySelector('.answer').innerText.trim()"), HELLO)
            self.assertEqual(b.run("document.querySelector('details.thoughts > div').textContent"), "".join(script.THOUGHTS))
            self.assertFalse(b.run("document.querySelector('details.thoughts').open"))  # folded
            self.assertRegex(b.run("document.querySelector('.speed').textContent"), r"^prompt \d+ tokens.* answer 7 tokens, [\d.]+ tokens/s$")
            b.run("document.querySelector('#thinking').value = '0'")
            self.ask("Again.")
            b.until("document.querySelectorAll('.answer').length === 2 && " + DONE)
            self.assertEqual(b.run("messages.map(m => m.role).join()"), "user,assistant,user,assistant")
            b.run("document.querySelector('#new').click()")
            self.assertEqual(b.run("document.querySelectorAll('main > *').length + messages.length"), 0)

    def test_markdown(self):
        with Server(*first(script.MARKDOWN[0])) as server:
            b = self.browser
            b.open(server.url)
            b.run("document.querySelector('#thinking').value = '0'")
            self.ask("Show.")
            b.until("document.querySelectorAll('.answer').length === 1 && " + DONE)
            shown = b.run("[...document.querySelector('.answer').children].map(e => e.tagName).join()")
            self.assertEqual(shown, "H3,P,UL,PRE")
            self.assertEqual(b.run("document.querySelector('.answer p').innerHTML"),
                             "Some <strong>bold</strong> and <code>code</code> &lt;b&gt;not bold&lt;/b&gt;.")
            self.assertEqual(b.run("[...document.querySelectorAll('.answer li')].map(e => e.textContent).join()"), "one,two")
            self.assertEqual(b.run("document.querySelector('.answer pre code').textContent"), "print(1 < 2)")

    def test_markdown_cannot_do_harm(self):
        with Server() as server:
            b = self.browser
            b.open(server.url)
            for text in "<img src=x onerror=alert(1)>", "[a](javascript:alert(1))", "**<script>x</script>**", "| a |\n|---|\n| <i> |":
                made = b.run(f"(() => {{ const e = document.createElement('div'); e.append(markdown({text!r})); return e.innerHTML; }})()")
                self.assertNotRegex(made, "<img|<script|<i>|href")
            made = b.run("(() => { const e = document.createElement('div'); e.append(markdown('1. a\\n   - b\\n2. c\\n\\n> q\\n\\n---\\n[x](https://e.org)'));"
                         "return e.innerHTML; })()")
            self.assertEqual(made, '<ol start="1"><li>a<ul><li>b</li></ul></li><li>c</li></ol><blockquote><p>q</p></blockquote><hr><p>'
                                   '<a href="https://e.org" rel="noopener noreferrer" target="_blank">x</a></p>')

    def test_stop_button(self):
        with Server(*first(script.FOREVER), "--context", "200000") as server:
            b = self.browser
            b.open(server.url)
            b.run("document.querySelector('#thinking').value = '0'")
            self.ask("Sing.")
            b.until("(document.querySelector('.answer') || {}).textContent")
            self.assertEqual(b.run("document.querySelector('#send').textContent"), "Stop")
            b.run("document.querySelector('#send').click()")
            b.until(DONE)
            self.assertEqual(b.run("document.querySelector('.speed').textContent"), "stopped")
            b.until(f"fetch('/health').then(r => r.json()).then(h => h.computing === 0)")
            self.assertGreater(b.run("messages[1].content.length"), 0)

    def test_errors_are_shown(self):
        with Server("--api-key", "secret") as server:
            b = self.browser
            b.open(server.url)
            b.until("document.querySelector('#model').textContent.includes('key')")
            self.ask("Hi")
            b.until("(document.querySelector('.speed.error') || { textContent: '' }).textContent.includes('key')")
            b.run("document.querySelector('#key').value = 'secret'; document.querySelector('#key').onchange()")
            b.until("document.title === 'scripted'")

    def test_picture(self):
        with Server() as server, tempfile.TemporaryDirectory() as folder:
            self.browser.open(server.url)
            self.browser.picture(os.path.join(folder, "page.png"))
            with open(os.path.join(folder, "page.png"), "rb") as file:
                data = file.read()
            self.assertEqual(data[:8], b"\x89PNG\r\n\x1a\n")
            self.assertGreater(len(data), 3000)  # more than an empty page


def draw(path):
    model = os.path.join(os.path.dirname(__file__), "../../examples/model/qwenmoe-py.gguf")
    with Server("--alias", "qwenmoe-py", model=model) as server, Browser(760, 420) as browser:
        browser.open(server.url)
        browser.run("document.querySelector('#tokens').value = '200'")
        browser.run("document.querySelector('#text').focus()")
        browser.type("Write a Python function `is_even(n)` that returns True if n is even.")
        browser.key("Enter", 13)
        browser.until("document.querySelector('.answer') && " + DONE)
        browser.picture(path)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--picture"]:
        draw(sys.argv[2])
    else:
        unittest.main()
