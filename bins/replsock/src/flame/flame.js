(function () {
  'use strict';
  var svg = document.documentElement;
  var calls = Array.prototype.slice.call(document.querySelectorAll('g.c'));
  var status = document.getElementById('status');
  var letter = 6.7; // a letter of the 11 px monospaced font, in px
  var wide = 1180;
  function num(call, name) { return parseFloat(call.getAttribute('data-' + name)); }
  function label(call, width) {
    var text = call.querySelector('text');
    var name = call.getAttribute('data-n');
    var room = Math.floor((width - 4) / letter);
    text.textContent = room < 3 ? '' : name.length <= room ? name : name.slice(0, room - 1) + '…';
  }
  function zoom(to) {
    var from = to ? num(to, 'x') : 0, part = to ? num(to, 'w') : 1, depth = to ? num(to, 'd') : -1;
    calls.forEach(function (call) {
      var x = num(call, 'x'), w = num(call, 'w');
      var above = num(call, 'd') < depth;
      var seen = above ? x <= from + 1e-9 && x + w >= from + part - 1e-9
        : x >= from - 1e-9 && x + w <= from + part + 1e-9;
      var left = Math.max(0, (x - from) / part) * wide, width = above ? wide : w / part * wide;
      call.style.display = seen && width >= 0.1 ? '' : 'none';
      call.classList.toggle('above', above);
      if (!seen) return;
      var rect = call.querySelector('rect');
      rect.setAttribute('x', (10 + left).toFixed(2));
      rect.setAttribute('width', Math.max(width - 0.3, 0.1).toFixed(2));
      call.querySelector('text').setAttribute('x', (13 + left).toFixed(2));
      label(call, width);
    });
    svg.setAttribute('data-zoomed', to ? to.getAttribute('data-n') : '');
  }
  function search(what) {
    what = what.toLowerCase();
    var found = [], count = 0;
    calls.forEach(function (call) {
      var hit = what !== '' && call.querySelector('title').textContent.toLowerCase().indexOf(what) >= 0;
      call.classList.toggle('found', hit);
      if (hit) { count += 1; found.push([num(call, 'x'), num(call, 'x') + num(call, 'w')]); }
    });
    // What calls what is found too would count twice: their union.
    found.sort(function (a, b) { return a[0] - b[0]; });
    var sum = 0, end = 0;
    found.forEach(function (pair) {
      if (pair[1] > end) { sum += pair[1] - Math.max(end, pair[0]); end = pair[1]; }
    });
    status.textContent = what === '' ? '' : count + ' found, ' + (sum * 100).toFixed(1) + ' % of the time';
  }
  calls.forEach(function (call) {
    call.addEventListener('click', function () { zoom(num(call, 'd') === 0 ? null : call); });
  });
  document.getElementById('reset').addEventListener('click', function () { zoom(null); });
  var box = document.createElementNS('http://www.w3.org/1999/xhtml', 'input');
  box.setAttribute('id', 'search');
  box.setAttribute('placeholder', 'search (Ctrl-F)');
  box.addEventListener('input', function () { search(box.value); });
  document.getElementById('box').appendChild(box);
  window.addEventListener('keydown', function (event) {
    if ((event.ctrlKey || event.metaKey) && event.key === 'f') { event.preventDefault(); box.focus(); }
    if (event.key === 'Escape') { box.value = ''; search(''); box.blur(); zoom(null); }
  });
  zoom(null);
})();
